"""What a store's error is taken for, by what it says and not by what the files are called."""

from __future__ import annotations

import pytest

from sp_ray_ml._remote import remote_errors
from sp_ray_ml.errors import StorageError


@pytest.mark.parametrize(
    "path",
    [
        "team/runs/a/steps/train/files-00b507c1/weights",
        "team/preprocessors/lessons.json",
        "team/quota/expired/forbidden.json",
    ],
)
def test_a_file_that_is_not_there_is_called_so_whatever_its_name(path: str) -> None:
    with pytest.raises(StorageError, match="cannot read: no such file or folder") as caught:
        with remote_errors(f"s3://{path}", "read"):
            raise FileNotFoundError(path)
    assert caught.value.where == f"s3://{path}"


def test_what_the_store_says_is_told_with_what_to_do() -> None:
    for said, told in (
        ("The SSO session has ended", "there are no credentials"),
        ("507, message='Insufficient Storage'", "the bucket is full"),
        ("The specified bucket does not exist", "no such bucket 'team'"),
    ):
        with pytest.raises(StorageError, match=told) as caught, remote_errors("s3://team/runs"):
            raise OSError(said)
        assert caught.value.hint
