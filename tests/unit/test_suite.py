from collections import Counter
from pathlib import Path


def test_no_two_test_files_share_a_name():
    """Pytest imports them by it: the second one of a name ends the whole collection."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
