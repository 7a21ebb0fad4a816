"""Judges say what property a crystal has. The default one learns band gaps from labels that the model has not seen.

A judge is a callable that takes CIF texts and returns a number for each, nan where it cannot tell. It can have a
``name`` and ``errors``, figures of its own error that stand beside the others in the report: a dict from names to
finite numbers, such as ``{"mae": 0.31}``, or to figures with interval (None without one) and number of observations,
such as ``{"mae": {"value": 0.31, "low": 0.29, "high": 0.33, "n": 500}}``. Packages offer judges under the entry point
``mat2seq_hf.judges``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import Mat2SeqError
from . import pool
from .descriptors import describe_cif, descriptors_fingerprint
from .formulas import formula_of, reduced_formula
from .plugins import load_function
from .schema import Figure, is_figure, mean, plain, share
from .sources import Reference
from .store import Store

__all__ = ["Judge", "TrainedJudge", "errors_of", "load_judge", "train_judge"]

_FOLDS = 5
_LARGE = 1000  # labels beyond which there are many trees

#: Of all models. Above 10,000 labels scikit-learn would stop early, by itself: the judge would then be another model
#: than those of the folds, whose error is stated, and a rare class could not be split.
_BOOSTING: dict[str, Any] = {"learning_rate": 0.06, "random_state": 0, "early_stopping": False}


class Judge(Protocol):
    """What :func:`load_judge` returns: numbers of crystals, nan where it cannot tell."""

    def __call__(self, cifs: Sequence[str]) -> Sequence[float]:
        """Numbers of CIF texts."""


class _TwoSteps:
    """First whether the value is above 0, then how large it is: most crystals are metals, whose gaps are exactly 0.

    For labels of which none is below 0.

    Mean absolute error on MP-20 val, five folds: 0.32 eV, against 0.35 of a single regression.
    """

    def __init__(self, features: NDArray[np.float64], labels: NDArray[np.float64], large: bool) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        few, many = (200, 300) if large else (30, 30)
        positive = labels > 0
        self._classifier: Any = None
        if positive.any() and not positive.all():
            self._classifier = HistGradientBoostingClassifier(max_iter=few, **_BOOSTING)
            self._classifier.fit(features, positive)
        self._regressor: Any = None
        if positive.any():
            self._regressor = HistGradientBoostingRegressor(max_iter=many, **_BOOSTING)
            self._regressor.fit(features[positive], labels[positive])

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of crystals, none below 0."""
        if self._regressor is None:
            return np.zeros(len(features))
        size = np.clip(self._regressor.predict(features), 0.0, None)
        likely = 1.0 if self._classifier is None else self._classifier.predict_proba(features)[:, 1]
        found: NDArray[np.float64] = np.where(np.asarray(likely) > 0.5, size, 0.0)
        return found


def _learned(features: NDArray[np.float64], labels: NDArray[np.float64], signed: bool, large: bool) -> Any:
    """A model that predicts labels: in two steps where none is below 0, else in one; with more trees if ``large``."""
    if not signed:
        return _TwoSteps(features, labels, large)
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=300 if large else 30, **_BOOSTING).fit(features, labels)


class TrainedJudge:
    """Gradient-boosted trees on :mod:`.descriptors`.

    Attributes:
        name: for the report.
        errors: of predictions for crystals whose formulas were held out.
    """

    def __init__(self, model: Any, errors: dict[str, Figure], name: str, options: dict[str, Any]) -> None:
        self._model, self.errors, self.name, self._options = model, errors, name, options

    def __call__(self, cifs: Sequence[str]) -> list[float]:
        """The property, in the unit of the labels."""
        features = _features(cifs, "describing samples", self._options)
        values = np.full(len(cifs), np.nan)
        readable = ~np.isnan(features).all(axis=1)
        if readable.any():
            values[readable] = self._model.predict(features[readable])
        found: list[float] = values.tolist()
        return found


def load_judge(name: str) -> Judge:
    """A judge by the name of an entry point in the group ``mat2seq_hf.judges``, or by ``"module:function"``.

    Raises:
        Mat2SeqError: there is none of that name.
    """
    named = {point.name: point for point in entry_points(group="mat2seq_hf.judges")}
    place = f"{named[name].module}:{named[name].attr}" if name in named else name
    known = ", ".join(sorted(named)) or "none"
    return load_function(place, kind="judge", others=f"an entry point, here: {known}")


def errors_of(judge: Judge, name: str | None) -> dict[str, Figure]:
    """The figures of its own error that a judge states, as they can stand in a report; empty if it states none.

    Args:
        judge: its ``errors`` map names to finite numbers, of numpy or not, or to figures of the form
            ``{"value", "low", "high", "n"}``. A number alone becomes a figure of one observation without interval.
        name: how the judge is called.

    Raises:
        Mat2SeqError: they are of another form.
    """
    stated: Any = getattr(judge, "errors", None)
    if stated is None:
        return {}
    form = "a finite number, or a dict with finite numbers as 'value', 'low', 'high' (or None) and a whole one as 'n'"
    if not isinstance(stated, Mapping):
        raise Mat2SeqError(f"the errors of the judge {name} must be a dict; by name, {form}; not {stated!r}"[:500])
    errors: dict[str, Figure] = {}
    for key, given in stated.items():
        figure = _as_figure(given)
        if not isinstance(key, str) or figure is None:
            raise Mat2SeqError(f"errors[{key!r}] of the judge {name} must be {form}; not {given!r}"[:500])
        errors[key] = figure
    return errors


def _as_figure(given: Any) -> Figure | None:
    """A number or figure, of numpy's numbers or Python's, as a figure of Python's; None if it is neither."""
    parts = dict(given) if isinstance(given, Mapping) else plain(given, 1)
    figure = {
        part: number.item() if isinstance(number, np.generic) else number
        for part, number in parts.items()
        if part in ("value", "low", "high", "n")
    }
    if not is_figure(figure) or any(isinstance(number, bool) for number in figure.values()):
        return None
    whole = isinstance(figure["n"], int)
    return figure if whole and (figure["value"] is not None or isinstance(given, Mapping)) else None


def _features(cifs: Sequence[str], label: str, options: dict[str, Any]) -> NDArray[np.float64]:
    """Descriptors, shape (n, features); a row of nan for what cannot be read."""
    outcomes = pool.run(describe_cif, list(cifs), label=label, **options)
    known = [outcome.value for outcome in outcomes if outcome.kind == "ok"]
    if not known:
        return np.full((len(cifs), 1), np.nan)
    empty = np.full(len(known[0]), np.nan)
    return np.array([outcome.value if outcome.kind == "ok" else empty for outcome in outcomes])


def _labelled(references: Sequence[Reference], column: str) -> tuple[list[Reference], NDArray[np.float64]]:
    kept, labels = [], []
    for reference in references:
        value = json.loads(reference.facts).get(column)
        if isinstance(value, (int, float)) and np.isfinite(value):
            kept.append(reference)
            labels.append(float(value))
    if len(kept) < 100:
        raise Mat2SeqError(f"{len(kept)} crystals have a label {column!r}; a judge needs 100 and wants thousands")
    return kept, np.array(labels)


def train_judge(
    references: Sequence[Reference],
    column: str,
    inside: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
    cache: Path | None = None,
    **options: Any,
) -> TrainedJudge:
    """Learn a property, and measure the error on formulas that were held out (five folds).

    Args:
        references: labelled crystals that the generator was not trained on.
        column: their label, such as ``"band_gap"``.
        inside: which values are what was asked for; the judge's precision and recall for it are measured.
        cache: file that keeps the descriptors.
        options: see :func:`.pool.run`.

    Raises:
        Mat2SeqError: scikit-learn is not installed, or there are too few labels or formulas.
    """
    try:
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise Mat2SeqError("the default judge needs scikit-learn: pip install 'mat2seq-hf[evaluate]'") from error
    kept, labels = _labelled(references, column)
    features = _cached_features(kept, cache, options)
    readable = np.asarray(~np.isnan(features).all(axis=1))
    features, labels = features[readable], labels[readable]
    formulas = [
        reduced_formula(formula_of(item.cif) or "") or item.id
        for item, r in zip(kept, readable.tolist(), strict=True)
        if r
    ]

    if len(set(formulas)) < _FOLDS:
        known = "one formula" if len(set(formulas)) == 1 else f"{len(set(formulas))} formulas"
        raise Mat2SeqError(f"the labelled crystals that can be read have {known}; {_FOLDS} folds need as many")
    signed, large = bool((labels < 0).any()), len(labels) > _LARGE
    predicted = np.zeros(len(labels))
    baseline = np.zeros(len(labels))
    for train, test in GroupKFold(_FOLDS).split(features, labels, formulas):
        predicted[test] = _learned(features[train], labels[train], signed, large).predict(features[test])
        baseline[test] = _composition_mean([formulas[i] for i in train], labels[train], [formulas[i] for i in test])
    truly, said = inside(labels), inside(predicted)
    errors = {
        "judge_error": mean(np.abs(predicted - labels).tolist()),
        "judge_baseline_error": mean(np.abs(baseline - labels).tolist()),
        "judge_precision": share(truly[said].tolist()),
        "judge_recall": share(said[truly].tolist()),
    }
    name = f"gradient-boosted trees on {len(labels):,} labels {column}, five folds grouped by formula"
    return TrainedJudge(_learned(features, labels, signed, large), errors, name, options)


def _cached_features(kept: Sequence[Reference], cache: Path | None, options: dict[str, Any]) -> NDArray[np.float64]:
    """Descriptors of labelled crystals, kept in a file of numbers with a fingerprint of the texts and of what computes.

    A row of nan was not computed, because it failed or ran out of time: it is tried again.
    """
    fingerprint = Store.key(descriptors_fingerprint(), *(item.cif for item in kept))
    features = np.full((len(kept), 1), np.nan)
    if cache is not None and cache.exists():
        try:
            with cache.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                if str(found["fingerprint"]) == fingerprint:
                    features = found["features"]
        except Exception:  # noqa: BLE001, S110 - numpy raises many types for what is cut off or something else
            pass  # it is written again
    missing = np.flatnonzero(np.isnan(features).all(axis=1)).tolist()
    if not missing:
        return features
    new = _features([kept[place].cif for place in missing], "describing labelled crystals", options)
    if np.isnan(new).all():
        return features
    if features.shape[1] != new.shape[1]:
        features = np.full((len(kept), new.shape[1]), np.nan)
    features[missing] = new
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_name(f"{cache.name}.tmp")
        with part.open("wb") as handle:
            np.savez_compressed(handle, features=features, fingerprint=np.array(fingerprint))
        part.replace(cache)
    return features


def _composition_mean(known: Sequence[str], labels: NDArray[np.float64], asked: Sequence[str]) -> NDArray[np.float64]:
    """Mean label of the crystals with the same elements; without such, the mean over the means of each element."""
    from pymatgen.core import Composition

    def elements(formula: str) -> frozenset[str]:
        try:
            return frozenset(element.symbol for element in Composition(formula).elements)
        except (ValueError, AttributeError):
            return frozenset()

    systems: dict[frozenset[str], list[float]] = {}
    single: dict[str, list[float]] = {}
    for formula, label in zip(known, labels.tolist(), strict=True):
        system = elements(formula)
        systems.setdefault(system, []).append(label)
        for symbol in system:
            single.setdefault(symbol, []).append(label)
    overall = float(labels.mean())
    answers = []
    for formula in asked:
        system = elements(formula)
        if system in systems:
            answers.append(float(np.mean(systems[system])))
        else:
            answers.append(float(np.mean([np.mean(single.get(symbol, [overall])) for symbol in system or ["?"]])))
    return np.array(answers)
