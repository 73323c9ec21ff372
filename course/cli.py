"""The `course` command. Each command imports its part when it runs, so that help is there at once."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="MoE to Metal: build a mixture of experts, its Triton kernels, and a model of the H800 it runs on.",
)
progress = typer.Typer(rich_markup_mode=None)
app.add_typer(progress, name="progress", help="Export what you have passed, or begin anew.")

Unit = Annotated[str, typer.Argument(metavar="UNIT", help="4, 04 or 04_mixture_of_experts.")]
AnyUnit = Annotated[str | None, typer.Argument(metavar="UNIT", help="4, 04 or 04_mixture_of_experts.")]


@app.command()
def lab(
    unit: AnyUnit = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The next free one is used where it is taken.")] = 8888,
):
    """Open a unit in JupyterLab, 00 by default."""
    from course.lab import lab_command

    lab_command(unit, not no_browser, port)


@app.command()
def check(unit: Unit):
    """Check your lab, as it was last saved."""
    from course.exercises.command import check_command

    return check_command(unit)


@app.command()
def hint(exercise: Annotated[str, typer.Argument(metavar="EXERCISE", help="Such as 04.2.")]):
    """Show the next hint for an exercise."""
    from course.exercises.overview import hint_command

    hint_command(exercise)


@app.command()
def status():
    """Show what you have passed."""
    from course.exercises.overview import status_command

    status_command()


@progress.command("export")
def export(file: Annotated[Path, typer.Argument(help="A file, or a folder for it.")]):
    """Write progress and kept answers to one JSON file."""
    from course.authoring import places
    from course.authoring.progress import export

    print(f"Progress is in {export(places.workspace(), file)}.")


@progress.command("reset")
def reset():
    """Begin anew. What was there is moved aside, not deleted; your notebooks stay as they are."""
    from course.authoring import places
    from course.authoring.progress import reset

    aside = reset(places.workspace())
    print(f"Progress starts anew; what was there is in {aside}." if aside else "There is no progress yet.")


@app.command()
def exercises(as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False):
    """List the exercises of the units that stand."""
    from course.exercises.overview import exercises_command

    exercises_command(as_json)


@app.command()
def doctor():
    """Say what this machine has and lacks."""
    from course.doctor import doctor_command

    return doctor_command()


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="tiny-moe or tiny-dense.")] = "tiny-moe",
    data: Annotated[str, typer.Option(help="code, prose, or the path of a file or folder.")] = "code",
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/PRESET of your workspace by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps in all.")] = 500,
    seconds: Annotated[float | None, typer.Option(help="Stop after so long; --resume goes on.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, batches and the text at the end.")] = 0,
    vocab: Annotated[int, typer.Option(help="Tokens of the tokenizer that is trained first.")] = 1024,
    optimizer: Annotated[str, typer.Option(help="adamw, or muon for the hidden matrices.")] = "adamw",
    precision: Annotated[str, typer.Option(help="float32, or bf16 for the products.")] = "float32",
    sharding: Annotated[
        str, typer.Option(help="Under torchrun: none, a copy of the model on each rank, or full, a share on each.")
    ] = "none",
):
    """Train a small model; under torchrun, on several processes."""
    from course.authoring import places
    from course.training.command import train_command

    home = places.workspace()
    out, cache = out or home / "runs" / preset, home / ".cache"
    how = {"optimizer": optimizer, "precision": precision, "sharding": sharding}
    try:
        train_command(
            out, preset, data, steps, seconds, resume, seed, vocab, cache=cache, progress=sys.stderr.isatty(), **how
        )
    except KeyboardInterrupt:  # it has said how to go on
        sys.exit(130)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "",
    run: Annotated[
        Path | None, typer.Option(help="A run's folder; runs/tiny-moe of your workspace by default.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Open weights instead: a folder with config.json and safetensors.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many to write.")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest each time.", show_default="0.8")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Choose among the likeliest that make up so much.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Another seed writes another text.")] = 0,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="Let multi-token modules guess ahead: the text of temperature 0.")
    ] = False,
):
    """Continue a text with a trained model."""
    from course.authoring import places
    from course.training.generation import generate_command, generate_open_command

    if model and run:
        raise typer.BadParameter("give --run or --model, not both")
    if speculate and temperature:
        raise typer.BadParameter(f"--speculate takes the likeliest each time, and --temperature {temperature} does not")
    if temperature is None:
        temperature = 0.0 if speculate else 0.8
    settings = (prompt, tokens, temperature, top_p, seed, partial(print, file=sys.stderr) if speculate else None)
    if model:
        print(generate_open_command(model, *settings))
    else:
        print(generate_command(run or places.workspace() / "runs" / "tiny-moe", *settings))


@app.command()
def size(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A preset, such as llama-3.1-405b; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="An object, or a list of them.")] = False,
):
    """Count a model: parameters, cache, FLOPs."""
    from course.model.size import size_command

    size_command(name, as_json)


@app.command("compile")
def compile_(
    kernel: Annotated[str, typer.Argument(metavar="KERNEL", help="Such as matmul, softmax, rmsnorm_backward.")],
    arch: Annotated[str, typer.Option(help="sm_80, sm_90, sm_100, gfx942, or all.")] = "sm_90",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    block: Annotated[str | None, typer.Option(metavar="MxNxK", help="Of kernels with tiles.")] = None,
    warps: Annotated[int | None, typer.Option(help="Of a block.")] = None,
    stages: Annotated[int | None, typer.Option(help="Tiles that are on their way at once.")] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT", help="Beside it: a kernel, or settings as block=64x64x32,num_warps=4."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Whose roofs bound the time: h800, h100, h200, a100, b200.")] = None,
    hot: Annotated[bool, typer.Option("--hot", help="The hot loop too, line by line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="An object, or a list of them.")] = False,
):
    """Compile a kernel to machine code, without a GPU."""
    from course.hardware.compile import compile_command

    chosen = {"block": block, "num_warps": warps, "num_stages": stages}
    settings = {key: str(value) for key, value in chosen.items() if value is not None}
    compile_command(kernel, arch, dtype, settings, compare, gpu, hot, as_json)


@app.command()
def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of torch.profiler: .json or .json.gz.")],
    against: Annotated[Path | None, typer.Option(metavar="FILE", help="Another, to put beside it.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Gets the timeline: .png, .svg or .pdf.")] = None,
    top: Annotated[int, typer.Option(min=0, help="How many kernels to name.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="An object; with --against a list of two.")] = False,
):
    """Read a profiler's trace: busy, idle, and hidden communication."""
    from course.hardware.trace_command import trace_command

    trace_command(file, against, as_json, picture, top)


@app.command()
def reproduce(
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects, with the source of each figure.")] = False,
):
    """Recompute published figures, and say how far off."""
    from course.hardware.reproduce.command import reproduce_command

    return reproduce_command(as_json)


@app.command()
def grade(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Notebooks, or folders and archives of them.")],
    lab: Annotated[str, typer.Option(metavar="UNIT", help="The unit whose lab they are.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets gradebook.csv and each student's results.json.")],
    no_isolation: Annotated[
        bool, typer.Option("--no-isolation", help="Run answers with your own rights, where there is no sandbox.")
    ] = False,
):
    """Grade labs, each answer in a sandbox."""
    from course.grading.command import grade_command

    return grade_command(lab, out, files, not no_isolation)


@app.command("bench-kernel")
def bench_kernel(
    exercise: Annotated[str, typer.Argument(metavar="EXERCISE", help="A kernel exercise, such as 10.3.")],
    submit: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE", help="A lab, a Python file with the answer, or a folder of them. May be repeated."
        ),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Gets this run's entries.")] = None,
    board: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keeps every student's best entry from run to run.")
    ] = None,
    gpu: Annotated[
        str, typer.Option(help="Whose bandwidth gives a time to the bytes: h800, h100, h200, a100, b200.")
    ] = ("h800"),
    computed: Annotated[bool, typer.Option("--computed", help="Measure nothing, even where there is a GPU.")] = False,
    no_isolation: Annotated[
        bool, typer.Option("--no-isolation", help="Run entries with your own rights, where there is no sandbox.")
    ] = False,
):
    """Rank a class's kernels, each in a sandbox.

    The rule: right on secret inputs first; then, on a GPU, the shortest median time; then the fewest bytes moved at the
    standard size (over the least, to two digits), the fewest launches, the fewest spilled bytes, the higher occupancy, the
    fewest registers. Equal in all, equal in rank.
    """
    from course.grading.bench_command import bench_command

    return bench_command(exercise, submit, json_file, board, gpu, not no_isolation, not computed)


@app.command()
def build(
    unit: AnyUnit = None,
    check: Annotated[bool, typer.Option("--check", help="Build nothing: say what is not as its source says.")] = False,
):
    """Build the notebooks whose sources changed."""
    from course.authoring import places
    from course.authoring.build import build

    faults = build(None if unit is None else [places.unit(unit)], only_check=check)
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return int(bool(faults))


@app.command("new-unit")
def new_unit(
    number: Annotated[str, typer.Argument(metavar="NUMBER", help="Such as 05.")],
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="Such as deepseek_moe.")],
    title: Annotated[str, typer.Argument(metavar="TITLE", help="Such as DeepSeekMoE.")],
):
    """Begin a unit: its sources, to write over."""
    from course.authoring import places
    from course.authoring.new_unit import new_unit

    root = places.root()
    print(*(path.relative_to(root) for path in new_unit(number.zfill(2), slug, title, root)), sep="\n")
    print(f"Write over the example, then: course build {number.zfill(2)}, course build --check, make test-fast.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command and end the process.

    Exit codes: 0 all is well, 1 something failed, 2 wrong use, 130 Ctrl-C. Errors are one line on standard error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments or ["--help"], prog_name="course", standalone_mode=False)
    except typer.TyperException as error:
        _end(2, f"{_one_line(error.format_message()).rstrip('.')}. See: {_path(error)} --help")
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    except Exception as error:
        if os.environ.get("COURSE_DEBUG"):
            raise
        if type(error).__module__.startswith("course."):  # the parts' own errors are sentences for the user
            _end(2, _one_line(str(error)))
        _end(1, f"The course failed: {type(error).__name__}: {_one_line(str(error))} (COURSE_DEBUG=1 shows where).")
    if code == 130:
        _end(130, "Stopped.")
    sys.exit(code)


def _path(error: typer.TyperException) -> str:
    """The command in which a usage error arose."""
    context = getattr(error, "ctx", None)
    return context.command_path if context else "course"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _end(code: int, line: str) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)
