"""Who answers in a batch: each process opens its own, and nobody sits before the screen."""

from __future__ import annotations

from dataclasses import replace

from medsight_core.backend import Backend
from medsight_core.cli.backends import Chosen, open_backend
from medsight_core.errors import InputError
from medsight_core.imaging.burned_in import burned_in_risk
from medsight_core.imaging.volume import Volume


def open_for(chosen: Chosen, number: int) -> Backend:
    """The backend of one process.

    Args:
        chosen: As it was typed.
        number: Of the process, from 0: several share the GPUs among them.

    Raises:
        MedSightError: Why there is none.
    """
    if chosen.remote:
        return open_backend(chosen)
    try:
        from medsight_core.inference.loading import share_device
    except ModuleNotFoundError:  # which `open_backend` says in words
        return open_backend(chosen)
    return open_backend(replace(chosen, device=share_device(chosen.device, number)))


def digest_of(chosen: Chosen) -> str:
    """The digest of the model, which is not loaded for it.

    Raises:
        MedSightError: The checkpoint is missing or damaged, the server cannot be reached.
    """
    if chosen.remote:
        return open_backend(chosen).info().digest
    from medsight_core.inference.checkpoint import open_checkpoint

    return str(open_checkpoint(chosen.model).digest)


def check_burned_in(chosen: Chosen, volume: Volume) -> None:
    """Refuses to send pixels to another machine in which a patient's name may be written: nobody looks here.

    Raises:
        InputError: burned_in.
    """
    if not chosen.remote:
        return
    from medsight_core.client.address import Address

    risk = burned_in_risk(volume)
    if risk and not Address.parse(chosen.url or "", insecure_http=chosen.insecure_http).local:
        raise InputError("burned_in", risk, "Say --send-burned-in where the server may see them.")
