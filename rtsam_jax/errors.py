"""One small hierarchy of errors: each has a stable code and an exit status.

A message is one sentence that says what is wrong, in which file or field, and what to do about it.
Commands print it as `error[CODE]: sentence` and leave with `exit_status`; see `run_command`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import ClassVar


class RTSamError(Exception):
    """Base of every error this package raises on purpose."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1


class ConfigError(RTSamError):
    """A configuration value is out of range or contradicts another."""

    code = "config_invalid"
    exit_status = 2


class UnknownConfigField(ConfigError):
    """A configuration field that does not exist was set."""

    code = "config_unknown_field"


class MissingFile(RTSamError):
    """A file or folder that is needed does not exist."""

    code = "missing_file"
    exit_status = 3


class UnreadableFile(RTSamError):
    """A file exists but cannot be decoded: truncated, corrupt or of another format."""

    code = "unreadable_file"
    exit_status = 3


class ExtraMissing(RTSamError):
    """A package that only an extra installs is needed and not there."""

    code = "extra_missing"
    exit_status = 3


class SessionMismatch(RTSamError):
    """A saved session cannot be had again: a file, the model or the mask is another now."""

    code = "session_mismatch"
    exit_status = 3


class OutputExists(RTSamError):
    """The place to write to is taken by something else."""

    code = "output_exists"
    exit_status = 3


class NotWritable(RTSamError):
    """A place to write to refuses: no permission, read-only, full, or below a file."""

    code = "not_writable"
    exit_status = 3


class DatasetSchemaError(RTSamError):
    """`dataset.json` violates its schema; the message names the case and the field."""

    code = "dataset_schema"
    exit_status = 4


class RecordError(RTSamError):
    """A case's record holds a field or a value that a prompt must not or cannot say."""

    code = "record_invalid"
    exit_status = 4


class SplitError(RTSamError):
    """A split is impossible or leaks a patient to both sides."""

    code = "split_invalid"
    exit_status = 4


class IncompleteCase(RTSamError):
    """A case lacks what is needed of it here: its dose, its label or a field of its record."""

    code = "incomplete_case"
    exit_status = 4


class VolumeError(RTSamError):
    """A volume's shape, type or affine cannot be used."""

    code = "volume_invalid"
    exit_status = 5


class NonFiniteVoxels(VolumeError):
    """A volume holds NaN or infinite voxels."""

    code = "non_finite_voxels"


class NoOverlap(VolumeError):
    """Two volumes of one case share no space."""

    code = "no_overlap"


class LabelNotCovering(VolumeError):
    """A label's grid ends inside its image's field of view; beyond it nothing is known."""

    code = "label_not_covering"


class ZeroDose(VolumeError):
    """A dose grid without a single positive voxel."""

    code = "zero_dose"


class NegativeDose(VolumeError):
    """A dose grid with values further below zero than resampling explains."""

    code = "negative_dose"


class DoseUnit(VolumeError):
    """A threshold in Gy on a dose grid that is in another unit."""

    code = "dose_unit"


class EmptyROI(VolumeError):
    """No voxel of the model grid reaches the dose threshold."""

    code = "empty_roi"


class PromptOutside(VolumeError):
    """A box or a click that lies, in part or whole, where the model sees nothing of the image."""

    code = "prompt_outside"


class CasesFailed(VolumeError):
    """Some cases could not be prepared or predicted; a table names each with its own error."""

    code = "cases_failed"


class CacheDamaged(RTSamError):
    """Prepared cases on disk are not what was written."""

    code = "cache_damaged"
    exit_status = 3


class CheckpointError(RTSamError):
    """A checkpoint does not fit the model it is meant for."""

    code = "checkpoint_invalid"
    exit_status = 6


class CheckpointIncomplete(CheckpointError):
    """A checkpoint folder that was not written to its end."""

    code = "checkpoint_incomplete"


class PresetMismatch(CheckpointError):
    """A checkpoint of another model preset."""

    code = "checkpoint_preset"


class EncoderWeightsMissing(CheckpointError):
    """A frozen image encoder without weights would stay random for ever."""

    code = "encoder_weights_missing"


class TrainingDiverged(RTSamError):
    """The loss or a gradient became NaN or infinite."""

    code = "training_diverged"
    exit_status = 7


class ProcessFailed(RTSamError):
    """Another process of a run failed, ended or cannot be reached, and this one with it."""

    code = "process_failed"
    exit_status = 8


class RunsFailed(RTSamError):
    """Some runs of a comparison failed; each is named with its own error, the others are done."""

    code = "runs_failed"
    exit_status = 9


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; prints an `RTSamError` as one line and exits with its status.

    Where the system refuses to write, wherever that was, that is a `NotWritable`.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:  # Ctrl-C; commands that have work to save catch the signal
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read the output, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (RTSamError, OSError) as cause:
        error = cause if isinstance(cause, RTSamError) else _refused(cause)
        if error is None:
            raise
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


_REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),  # a file in a folder's place, or the reverse
    *(errno.ENAMETOOLONG, errno.ELOOP),
)


def _refused(cause: OSError) -> NotWritable | None:
    if cause.errno not in _REFUSALS:
        return None
    where = cause.filename if cause.filename is not None else "a file"
    return NotWritable(
        f"the system refuses access to {where} ({cause.strerror}); mend its permissions, free "
        f"space, or write to another folder."
    )
