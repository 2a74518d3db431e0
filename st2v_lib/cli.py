"""The command ``st2v``. Only the parser lives here: each sub-command's module is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from st2v_lib import __version__
from st2v_lib.config import PRESETS
from st2v_lib.errors import UserError

SAMPLERS = ("dpm++", "sde-dpm++", "ddim")
PHASES = ("vae", "clip", "reader", "image", "base", "cam", "apm", "enhancer", "all")
ARMS = (
    "concat_cond", "concat_cond_aligned", "add_cond", "add_cond_aligned", "add_cond_primed", "cam_primed",
    "cam_guided", "placed_cam", "cam_1", "cam_2", "cam_4", "apm_null", "apm_unet", "apm_unet_null",
)  # fmt: skip
SUITES = (
    "first-chunk", "long", "guidance", "samplers", "cam", "cam-condition", "cam-hidden", "apm", "apm-anchors",
    "blending", "blending-sweep", "blending-levels",
)  # fmt: skip
DRAWINGS = (
    "overview", "floors", "table1", "table-cam", "table-apm", "table-blending", "table-long", "motion",
    "stability", "fig4", "fig12", "fig14", "table12",
)  # fmt: skip
PAPER_ROWS = (
    "table1", "apm-off", "blending-B", "blending-B+S", "blending", "low-resolution", "conc-cond", "add-cond",
)  # fmt: skip
FLOWS = ("dis", "farneback", "raft")
DTYPES = ("fp16", "bf16", "fp32")
RUNG_NAMES = ("fastest", "16 GB", "smallest")
DEMO_DIR = Path("outputs/demo")


class _Parser(argparse.ArgumentParser):
    """argparse with one clear line for a wrong argument, where the original prints the whole usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands; ``args.module`` names the module whose ``run(args)`` does the work."""
    parser = _Parser(prog="st2v", description="StreamingT2V: long videos from text, one chunk after another.")
    parser.add_argument("--version", action="version", version=f"st2v {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_generate(commands)
    _add_stream(commands)
    _add_metrics(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_reproduce(commands)
    _add_paper(commands)
    _add_download(commands)
    _add_convert(commands)
    _add_doctor(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 found wanting, 2 a user's error, 130 interrupted."""
    args = build_parser().parse_args(argv)
    try:
        return importlib.import_module(args.module).run(args) or 0
    except UserError as error:
        print(f"st2v {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"st2v {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `st2v doctor | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _add(commands: argparse._SubParsersAction, name: str, module: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(module=module)
    return parser


def _add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny", help="size of the models (default: tiny)")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps (default: auto)"
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of the preset (default: shipped)")


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "generate", "st2v_lib.generate_cli", "turn a prompt into a video")
    parser.add_argument(
        "prompt", metavar="PROMPT", help='what the video shows, "a red circle bounces over green stripes"'
    )
    parser.add_argument("--frames", type=int, default=80, metavar="N", help="length, 16 or more (default: 80)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same frames (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE.mp4", help="where the video goes")
    _add_preset(parser)
    _add_device(parser)
    _add_weights(parser)
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the preset's; the paper's setting is ddim")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps of a chunk (default: the preset's)")
    parser.add_argument("--eta", type=float, help="noise that ddim adds at each step, 0 to 1 (default: the preset's)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="guidance scale (default: the preset's)")
    parser.add_argument(
        "--paste", action="store_true",
        help="also paste carried frames into each chunk, at the noise of each step; not in the paper",
    )  # fmt: skip
    parser.add_argument("--no-enhance", action="store_true", help="stop after stage 2, at the low resolution")
    parser.add_argument(
        "--chunk-batch", type=int, default=1, metavar="N", help="stage 3: chunks in a call (default: 1)"
    )
    parser.add_argument("--first", type=Path, metavar="FILE", help="a video or image to start from, not stage 1")
    parser.add_argument("--memory", choices=("auto", *RUNG_NAMES), default="auto", help="rung on a GPU (default: auto)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp16 on a GPU, fp32 on a CPU; tiny: fp32 or bf16")
    parser.add_argument(
        "--demo", type=Path, nargs="?", const=DEMO_DIR, metavar="DIR",
        help=f"also write both sizes, a contact sheet, an x-t slice and a metrics table (default DIR: {DEMO_DIR})",
    )  # fmt: skip


def _add_stream(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands, "stream", "st2v_lib.stream_cli", "make a video that plays while it grows, and may go on for ever"
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="what the video shows")
    parser.add_argument("--frames", type=int, metavar="N", help="length, 16 or more (default: until it is stopped)")
    parser.add_argument("--seed", type=int, help="same seed, same frames (default: 0)")
    parser.add_argument("--session", type=Path, metavar="DIR", help="where its checkpoints go (default: outputs/…)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the session in DIR")
    parser.add_argument("--branch", type=Path, metavar="DIR", help="another future of the session in DIR; needs --at")
    parser.add_argument("--at", type=int, metavar="K", help="the first chunk that is made anew")
    parser.add_argument("--out", type=Path, metavar="FILE.mp4", help="the growing video (default: DIR/live.mp4)")
    parser.add_argument(
        "--prompt-at", nargs=2, action="append", default=[], metavar=("FRAME", "PROMPT"),
        help="another prompt from that frame on; may be given several times",
    )  # fmt: skip
    _add_preset(parser)
    _add_device(parser)
    _add_weights(parser)
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the preset's; the paper's setting is ddim")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps of a chunk (default: the preset's)")
    parser.add_argument("--eta", type=float, help="noise that ddim adds at each step, 0 to 1 (default: the preset's)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="guidance scale (default: the preset's)")
    parser.add_argument("--no-enhance", action="store_true", help="stop after stage 2, at the low resolution")


def _add_metrics(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "metrics", "st2v_lib.metrics.cli", "measure a video")
    parser.add_argument("video", type=Path, metavar="VIDEO", help="mp4, folder of png or jpg, .npy or .npz")
    parser.add_argument("--prompt", help="the prompt it was made from, for the scores that need one")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--flow", choices=FLOWS, help="flow estimator (default: dis)")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="another CLIP than the sprite world's small one")
    parser.add_argument("--min-scene-len", type=int, metavar="N", help="of SCuts (default: 15, PySceneDetect's)")
    parser.add_argument("--lpips", action="store_true", help="add LPIPS to the first frame (needs the package lpips)")


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "train", "st2v_lib.training.cli", "train one phase, or all of them in order")
    parser.add_argument(
        "phase", choices=(*PHASES, *ARMS), metavar="PHASE",
        help=f"{', '.join(PHASES)}; or an arm of the fair tests: {', '.join(ARMS)}",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, metavar="M", help="time budget; always ends in valid files")
    parser.add_argument("--budget", metavar="P=M,…", help="all: minutes of each phase, vae=1,clip=0.5; the others rest")
    _add_preset(parser)
    _add_device(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where weights and curves go")
    parser.add_argument("--data", type=Path, metavar="DIR", help="cam, apm: train on its videos and captions.jsonl")
    parser.add_argument("--batch-scale", type=float, default=1.0, metavar="X", help="multiplies batch sizes")
    parser.add_argument("--lr-scale", type=float, default=1.0, metavar="X", help="multiplies learning rates")
    parser.add_argument(
        "--temporal-lr-scale", type=float, default=1.0, metavar="X", help="of base: its temporal layers', on top"
    )
    parser.add_argument("--compile", action="store_true", help="compile transformer blocks (needs a C++ compiler)")
    parser.add_argument("--graph", action="store_true", help="record the step as a CUDA graph (small models, one GPU)")
    parser.add_argument("--no-ema", action="store_true", help="write the last weights, not their moving average")
    parser.add_argument("--resume", action="store_true", help="go on from what --out already holds")
    arms = parser.add_argument_group("arms of the fair tests")
    arms.add_argument("--from", dest="source", type=Path, metavar="DIR", help="what they start from (default: shipped)")
    arms.add_argument("--clips", type=int, metavar="N", help="budget in clips, whatever time it takes")
    arms.add_argument("--seed", type=int, default=0, help="of initialisation and data (default: 0)")


def _add_paper(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "paper", "st2v_lib.evaluation.paper_scale", "run a row of the paper's tables at full size")
    parser.add_argument("row", choices=(*PAPER_ROWS, "table"), metavar="ROW", help=f"{', '.join(PAPER_ROWS)}; or table")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line; the paper's are in its §11")
    parser.add_argument("--frames", type=int, default=240, metavar="N", help="length of each video (default: 240)")
    parser.add_argument("--seed", type=int, default=0, help="of the first video (default: 0)")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="a public CLIP for the CLIP score")
    parser.add_argument("--flow", choices=FLOWS, default="dis", help="default: dis; the paper's is raft (torchvision)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where videos go (default: outputs/paper)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="result files (default: data/results/paper)")
    parser.add_argument("--estimate", action="store_true", help="say what it would take, and stop")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="modelscope", help="tiny: to try the command")
    _add_device(parser)


def _add_download(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "download", "st2v_lib.download", "fetch and convert everything the full-size model needs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="pipeline folder (default: data/weights/modelscope)")
    named = {"nargs": "*", "default": [], "metavar": "NAME=VALUE"}
    parser.add_argument("--source", **named, help="a folder or another repository for base, clip, streaming, enhancer")
    parser.add_argument("--revision", **named, help="commit of one of these repositories")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched, check the room, and stop")


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "convert", "st2v_lib.convert", "turn the released full-size weights into this library's")
    parser.add_argument(
        "source", type=Path, metavar="SOURCE",
        help="streaming_t2v.ckpt; its safetensors split, a file or a folder; or MS-Vid2Vid-XL's .pth",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="gets unet, cam, apm or enhancer, fp16")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "evaluate", "st2v_lib.evaluation.cli", "run a fair test and write result files")
    parser.add_argument("suite", choices=SUITES, metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="test is for reported tables only")
    parser.add_argument("--prompts", type=int, metavar="N", help="videos of each run (default: the suite's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="of the noise; a run each")
    parser.add_argument("--frames", type=int, metavar="N", help="length of the videos (default: the suite's)")
    parser.add_argument("--sprites", type=int, choices=(1, 2), default=1, help="in each scene (default: 1)")
    parser.add_argument("--speed", choices=("world", "fast"), default="world", help="fast: 8 px a frame and more")
    parser.add_argument("--arms", type=Path, nargs="+", default=[], metavar="DIR", help="arms made by st2v train ARM")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms alone")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="weights of the other arms (default: shipped)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where files go (default: data/results)")
    parser.add_argument("--batch", type=int, metavar="N", help="videos made together (default: the suite's)")
    parser.add_argument("--estimate", action="store_true", help="say how long it would take, and stop")
    parser.add_argument("--dtype", choices=DTYPES, help="as of generate; part of a result's identity")
    _add_preset(parser)
    _add_device(parser)


def _add_reproduce(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "reproduce", "st2v_lib.evaluation.reproduce", "draw a table or figure from result files")
    parser.add_argument("what", choices=(*DRAWINGS, "all"), metavar="WHAT", help=f"{', '.join(DRAWINGS)}, all")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="whose results (default: test)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where they lie (default: data/results)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where drawings go (default: outputs/reproduce)")


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "doctor", "st2v_lib.doctor", "say what this machine can run and whether weights are intact")
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


if __name__ == "__main__":
    sys.exit(main())
