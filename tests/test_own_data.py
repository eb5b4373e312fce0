"""What is said of a user's own files before anything is trained on them."""

from pathlib import Path

import pytest

from trainyard.config import TrainConfig
from trainyard.errors import UserError
from trainyard.splits import find_splits


def write(folder: Path, labels: list[str]) -> Path:
    path = folder / "mail.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{x}\n" for i, x in enumerate(labels)))
    return path


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "null", "None"])
def test_a_missing_number_is_no_class(tmp_path: Path, missing: str) -> None:
    """Where pandas filled a column of numbers; among names it may be one (Namibia's code)."""
    path = write(tmp_path, ["0", "1", missing, "1", missing])
    with pytest.raises(UserError, match=rf"mail\.csv line 4: label '{missing}' found among numb"):
        find_splits(TrainConfig(train_file=str(path)))
    path = write(tmp_path, ["SA", "SA", missing, missing])
    assert missing in find_splits(TrainConfig(train_file=str(path))).task.labels
