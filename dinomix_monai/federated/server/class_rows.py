"""The weights that belong to one class, averaged over the sites that know the class."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

__all__ = ["ClassRows"]


class ClassRows:
    """
    Takes the weights of each class out of an update, so that a site has no part in those of classes it does not know.

    The last layer of a network has weights of its own for each class, here called rows. Where nobody has looked for a
    class, its rows are free to move, and in the average they would pull the class away from where other sites have
    taught it.

    Args:
        axes: axis of the classes, by the name of each weight that has rows, see
            :func:`~dinomix_monai.federated.protocol.class_axes`.
        known: label values of the classes that a site knows, background included, by the site's name. A site that is
            not named knows all.

    Example:
        >>> rows = ClassRows({"head": 0}, {"site-1": {0, 1}})
        >>> rows.split({"head": np.array([0.5, 1.5, 2.5])}, "site-1")
        {'head[0]': array(0.5), 'head[1]': array(1.5)}
    """

    def __init__(self, axes: Mapping[str, int], known: Mapping[str, Collection[int]]) -> None:
        self.axes, self.known = dict(axes), dict(known)

    def split(self, update: Mapping[str, np.ndarray], site: str) -> dict[str, np.ndarray]:
        """
        Replaces weights that have rows by the rows of the classes that the site knows.

        Args:
            update: arrays by name.
            site: name of the site.

        Returns:
            Arrays by name; a row has the name of its weight and the value of its class.
        """
        result = {name: value for name, value in update.items() if name not in self.axes}
        for name, axis in self.axes.items():
            if name in update:
                rows = np.moveaxis(np.asarray(update[name]), axis, 0)
                known = self.known.get(site, range(len(rows)))
                result |= {_row(name, value): np.array(rows[value]) for value in range(len(rows)) if value in known}
        return result

    def join(
        self, average: Mapping[str, np.ndarray], model: Mapping[str, np.ndarray], is_difference: bool
    ) -> dict[str, np.ndarray]:
        """
        Puts averaged rows together again.

        Args:
            average: averages of what :meth:`split` has returned.
            model: the present global model, whose rows stay where no site has sent any.
            is_difference: whether the updates hold the change of the weights and not the weights themselves.

        Returns:
            Arrays by name, of the shapes that the model has.
        """
        result = dict(average)
        for name, axis in self.axes.items():
            present = np.asarray(model[name])
            rows = {value: _row(name, value) for value in range(present.shape[axis])}
            found = {value: result.pop(row) for value, row in rows.items() if row in average}
            if found:
                joined = np.zeros_like(present) if is_difference else present.copy()
                for value, row in found.items():
                    np.moveaxis(joined, axis, 0)[value] = row
                result[name] = joined
        return result


def _row(name: str, value: int) -> str:
    return f"{name}[{value}]"
