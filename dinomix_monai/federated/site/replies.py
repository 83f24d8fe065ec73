"""
The border of a site: all that leaves it is made here.

Each reply to a task is an ``FLModel`` that one of these functions makes, and :func:`send_curves` sends the numbers that
TensorBoard shows at the server. What NVFlare itself sends (the site's name, heartbeats, the state of a job, errors in
the log) is not made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nvflare.apis.fl_constant import FLMetaKey
from nvflare.client import FLModel, ParamsType
from nvflare.client.tracking import SummaryWriter

from dinomix_monai.federated.protocol import ClassScores, MetaKeys, SiteDescription, SiteLabels, UpdateForm
from dinomix_monai.federated.site.site import RoundResult

__all__ = ["answer_reply", "not_ready_reply", "send_curves", "update_reply"]


def update_reply(result: RoundResult, metrics: Mapping[str, float], transfer: str) -> FLModel:
    """
    The reply to ``train``: an update, the number of steps that it took, and the score of the global model before it.

    Args:
        result: what the round brought. Its losses are not part of the reply.
        metrics: mean Dice of the global model over the validation cases; empty without a score.
        transfer: form of the update, one of :class:`~dinomix_monai.federated.protocol.UpdateForm`.
    """
    return FLModel(
        params=dict(result.update),
        params_type=ParamsType.FULL if transfer == UpdateForm.FULL else ParamsType.DIFF,
        metrics=dict(metrics),
        meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: result.steps},
    )


def answer_reply(answer: SiteLabels | SiteDescription | ClassScores | Mapping[str, float]) -> FLModel:
    """
    The reply to any other task, which carries no weights.

    Args:
        answer: for ``labels`` the names of the site's own classes, for ``handshake`` the site's description, for
            ``validate`` the mean Dice over the validation cases, for ``score`` and ``alone`` the scores by class.
    """
    return FLModel(params={}, meta={str(MetaKeys.ANSWER): dict(answer)})


def not_ready_reply(error: BaseException) -> FLModel:
    """
    The reply to ``labels`` or ``handshake`` of a site that is not ready.

    Args:
        error: why it is not. Only the name of the error's class is sent, because the text may name files.
    """
    return FLModel(params={}, meta={str(MetaKeys.ERROR): type(error).__name__})


def send_curves(
    writer: SummaryWriter,
    round_number: int,
    metrics: Mapping[str, float],
    losses: Sequence[Mapping[str, float]],
) -> None:
    """
    Sends the numbers that TensorBoard shows at the server, beside those of the other sites.

    Args:
        writer: NVFlare's writer, which sends each number as an event.
        round_number: counted from 0.
        metrics: mean Dice of the global model over the validation cases.
        losses: for each epoch of the round its number (``epoch``) and the means that ``history.csv`` has.
    """
    for name, value in metrics.items():
        writer.add_scalar(f"global_{name}", value, global_step=round_number)
    for row in losses:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(f"train_{name}", value, global_step=int(row["epoch"]))
