"""How close each posterior's predictions are to those of the exact posterior, drawn by Hamiltonian Monte Carlo.

    python -m experiments.hmc_agreement boston --methods nng-kron,nng-full

The network of :mod:`experiments.uci_regression` with a prior of variance eta / fan-in, on one split. The command first
draws the exact posterior by NUTS, in parts, until the split R-hat of every test prediction is below a threshold; then
it trains every method and compares its predictions on the test part, by sampled weights and linearized about the mean,
with NUTS's, and one half of NUTS's chains with the other, which is the floor that Monte Carlo noise sets. A reference
that does not converge is reported and not used. Written to the output folder: ``agreement.csv``, ``agreement.md``, a
figure per data set, and the references with their diagnostics. A run that was stopped goes on where it stood.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import typer
from torch import Tensor

import noisynat
from experiments import agreement_report, cli, records, runs
from experiments.agreement import compare
from experiments.agreement_report import HALVES
from experiments.hmc_reference import Settings, one_split, reference
from experiments.methods import METHODS, RECIPES, Method
from experiments.protocol import Splits
from experiments.runs import Configuration
from noisynat.interop.pyro import NUTSPosterior

Predictive = Literal["sampled", "linearized"]

_MODULE = "experiments.hmc_agreement"

PREDICTIVES: tuple[Predictive, ...] = ("sampled", "linearized")
_BEST = "mix-full"


def _methods() -> dict[str, Method]:
    """The families and recipes with the reference's model, in which noise is the same everywhere.

    What counts here is the prediction, not the ELBO: every family has the long warm-up of the KL that serves it, and on
    one split a mixture can afford five members.
    """
    families = {
        name: replace(method, kl_warmup=0.75, kl_start=0.1) for name, method in METHODS.items() if not method.start
    }
    dense = {name: replace(method, start=families["nng-kron"]) for name, method in METHODS.items() if method.start}
    recipes = {name: replace(method, members=5) for name, method in RECIPES.items() if not method.heteroscedastic}
    return {name: (families | dense | recipes)[name] for name in [*METHODS, *recipes]}


KNOWN = _methods()

# --- the methods ----------------------------------------------------------------------------------


def predict(
    network: noisynat.VariationalNetwork,
    splits: Splits,
    samples: int,
    predictive: Predictive = "sampled",
) -> noisynat.Predictive:
    """Predictions (samples, n, 1) of the test part of the one split there is, members mixed."""
    members = network.replicas[1:].numel()
    prediction = network.predict(
        runs.members_of(splits.x_test, network.replicas),
        num_samples=-(-samples // members),
        predictive=predictive,
        combine="equal" if len(network.replicas) > 1 else None,
    )
    return prediction.replica(0)


def run_method(
    method: Method,
    exact: noisynat.Predictive,
    splits: Splits,
    config: Configuration,
    settings: Settings,
    folder: Path,
    draws: int,
    *,
    progress: bool,
) -> bool:
    """Train ``method`` and compare it with the reference into ``folder``, unless that is done; whether it was work."""
    parts = {"method": asdict(method), "configuration": asdict(config), "settings": asdict(settings), "draws": draws}
    about = runs.plain(parts)
    done = records.read_json(folder / "run.json")
    if done is not None and done["settings"] == about:
        return False
    if records.read_json(folder / "started.json") != about:
        runs.remove_checkpoints(folder)
        records.write_json(folder / "started.json", about)
    network, history = runs.train(method, splits, config, folder, progress)
    figures = []
    for predictive in PREDICTIVES:
        prediction = predict(network, splits, settings.samples, predictive)
        measured = {**compare(exact, prediction).row(), **accuracy(prediction, splits)}
        figures.append({"predictive": predictive, **measured, "training_seconds": history["seconds"][-1]})
        records.write_table(folder / f"points_{predictive}.csv", points(exact, prediction, splits))
    records.write_json(folder / "run.json", {"settings": about, "figures": figures, **records.provenance(_MODULE)})
    runs.remove_checkpoints(folder)
    return True


# --- figures --------------------------------------------------------------------------------------


def accuracy(prediction: noisynat.Predictive, splits: Splits) -> dict[str, float]:
    """RMSE and mean test log-likelihood in raw units of a prediction of the split's test part."""
    target, scale = splits.y_test[0], splits.y_scale[0].double()
    error = (prediction.mean.double() - target).square().mean().sqrt() * scale
    log_likelihood = prediction.log_prob(target).double().mean() - scale.log()
    return {"rmse": float(error), "log_likelihood": float(log_likelihood)}


def points(exact: noisynat.Predictive, prediction: noisynat.Predictive, splits: Splits) -> pd.DataFrame:
    """Per test point, mean, epistemic and total standard deviation of both predictions, in raw units."""
    offset, scale = splits.y_mean[0].double(), splits.y_scale[0].double()
    columns: dict[str, Tensor] = {}
    for name, one in (("nuts", exact), ("method", prediction)):
        columns[f"{name}_mean"] = one.mean.double() * scale + offset
        columns[f"{name}_epistemic_std"] = one.epistemic_variance.double().sqrt() * scale
        columns[f"{name}_std"] = one.stddev.double() * scale
    return pd.DataFrame({key: value[:, 0].numpy() for key, value in columns.items()})


def reference_rows(drawn: NUTSPosterior, splits: Splits, settings: Settings) -> list[dict[str, Any]]:
    """NUTS against itself: its second half of chains against its first, as if that were the reference."""
    half = drawn.chains // 2
    first, second = (drawn.select(chains) for chains in (range(half), range(half, drawn.chains)))
    x = splits.x_test[0]
    # Whether half of the chains would pass alone is not the question here: together they did.
    p, q = (
        part.predict(x, min(settings.samples, half * drawn.draws), allow_unconverged=True) for part in (first, second)
    )
    seconds = sum(drawn.diagnostics.seconds)
    return [
        {
            "method": HALVES,
            "predictive": "sampled",
            **compare(p, q).row(),
            **accuracy(q, splits),
            "training_seconds": seconds / 2,
        }
    ]


# --- the command ----------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help="Data sets; default: boston.")] = None,
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(KNOWN)}.")] = ",".join(
        [*METHODS, _BEST]
    ),
    split: Annotated[int, typer.Option(min=0, help="Number of the split.")] = 0,
    prior_variance: Annotated[float, typer.Option(help="eta.")] = 1.0,
    prior_scale: Annotated[str, typer.Option(help="fan_in: eta / inputs of the layer; none: eta.")] = "fan_in",
    chains: Annotated[int, typer.Option(min=2, help="Of NUTS; an even number.")] = 4,
    warmup: Annotated[int, typer.Option(min=1, help="Draws of a chain for adaptation.")] = 300,
    draws: Annotated[int, typer.Option(min=4, help="Of a chain, at least.")] = 1200,
    max_draws: Annotated[int, typer.Option(min=4, help="Of a chain, at most.")] = 4800,
    part: Annotated[int, typer.Option(min=4, help="Draws of a chain between two looks at convergence.")] = 300,
    max_tree_depth: Annotated[int, typer.Option(min=1, help="2^depth - 1 leapfrog steps per draw at most.")] = 10,
    threshold: Annotated[float, typer.Option(min=1.0001, help="Of R-hat.")] = 1.01,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the methods, instead of the rule's number.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Hidden units, instead of the rule's number.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/hmc_agreement"),
    seed: Annotated[int, typer.Option(help="Of chains, initial weights, batches and noise.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Chains at the same time.")] = 1,
) -> None:
    """Draw the references, train, compare and report; finished parts are kept."""
    console = cli.started(1)
    chosen = cli.chosen(methods, KNOWN)
    if chains % 2:
        raise typer.BadParameter(
            f"half of the chains is compared with the other half; got {chains}", param_hint="--chains"
        )
    if prior_scale not in ("fan_in", "none"):
        raise typer.BadParameter(f"fan_in or none, got {prior_scale}", param_hint="--prior-scale")
    scale: Literal["fan_in"] | None = "fan_in" if prior_scale == "fan_in" else None
    settings = Settings(split, chains, warmup, part, draws, max_draws, max_tree_depth, threshold)
    names, unconverged, tables = cli.checked_datasets(datasets or ["boston"]), [], []
    for name in names:
        splits = one_split(cli.loaded(name, split + 1, console), split)
        config = replace(
            Configuration.for_size(name, splits.num_train),
            prior_variance=prior_variance,
            prior_scale=scale,
            seed=seed,
        )
        config = replace(config, epochs=epochs or config.epochs, hidden=hidden or config.hidden)
        folder = output / f"{name}-split{split}"
        console.print(f"[bold]{name}[/bold] split {split}: NUTS, {chains} chains, N = {splits.num_train}")
        drawn = reference(splits, config, settings, folder, _MODULE, processes=processes, progress=True)
        summary = drawn.summary()
        console.print(agreement_report.reference_line(summary), markup=False)
        if not summary["converged"]:
            console.print("  not converged, so it is not used; allow more draws", style="red")
            unconverged.append(name)
            continue
        exact = drawn.predict(splits.x_test[0], min(settings.samples, drawn.chains * drawn.draws))
        for method in chosen:
            console.print(f"  {method.name}: {method.title}, {config.epochs} epochs")
            at = folder / method.name
            if not run_method(method, exact, splits, config, settings, at, drawn.draws, progress=True):
                console.print("    done before")
        rows = reference_rows(drawn, splits, settings)
        for method in chosen:
            done = records.read_json(folder / method.name / "run.json")
            assert done is not None
            rows += [{"method": method.name, **figures} for figures in done["figures"]]
        table = pd.DataFrame(rows)
        table.insert(0, "dataset", name)
        table.insert(1, "split", split)
        records.write_table(folder / "agreement.csv", table)
        tables.append(table)
        agreement_report.figure(folder, chosen, name, output / f"{name}-split{split}.png")
    if tables:
        about = {
            n: records.read_json(output / f"{n}-split{split}" / "reference.json") for n in names if n not in unconverged
        }
        agreement_report.write(pd.concat(tables, ignore_index=True), about, output, records.provenance(_MODULE))
        console.print(agreement_report.rich_table(pd.concat(tables, ignore_index=True)))
        console.print(f"written: {output / 'agreement.csv'}, {output / 'agreement.md'}")
    if unconverged:
        console.print(f"no converged reference for: {', '.join(unconverged)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
