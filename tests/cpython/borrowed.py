"""``test.test_concurrent_futures`` of another Python, for one that comes without: see suite.py."""

import os
from pathlib import Path

exec(compile(Path(os.environ["MPMS_TEST_BORROWED"]).read_text("utf-8"), os.environ["MPMS_TEST_BORROWED"], "exec"))
