"""`refqnn fhe`: compile, make keys, encrypt, run and decrypt, each a command on files.

Concrete is imported where it is used.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refqnn.commands import console
from refqnn.commands.reading import Reader, reads
from refqnn.container import array_to_npy, write_atomically
from refqnn.errors import InvalidArgument, mismatch

if TYPE_CHECKING:
    from refqnn.fhe import Client

_PROBABILITY = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.group(cls=console.Group, short_help="Encrypted inference, client and server apart.")
def fhe() -> None:
    """Encrypted inference with files: the client keeps its keys, the server sees ciphertexts.

    \b
        owner    refqnn fhe compile NETWORK --client client.fhe --server server.fhe
        client   refqnn fhe client keygen client.fhe --keys keys --evaluation-keys evaluation
        client   refqnn fhe client encrypt client.fhe X.npy requests --keys keys
        server   refqnn fhe server run server.fhe requests answers --evaluation-keys evaluation
        client   refqnn fhe client decrypt client.fhe answers Y.npy --keys keys --requests requests

    The server needs the files server.fhe, evaluation and requests; keys never leave the client.
    """


# --- the owner of the network -----------------------------------------------------------------


@fhe.command(name="compile", short_help="A network as a client's and a server's file.")
@click.argument("network", type=console.FILE)
@click.option(
    "--client",
    "client_file",
    type=console.NewFile(),
    required=True,
    help="To write: what makes keys, encrypts and decrypts.",
)
@click.option(
    "--server",
    "server_file",
    type=console.NewFile(),
    required=True,
    help="To write: what computes on ciphertexts.",
)
@click.option(
    "--security",
    type=click.Choice(["ind-cpa-d", "ind-cpa"]),
    default="ind-cpa-d",
    help="Failures of an inference: 2**-128 at most, or 2**-64 if no other learns results.",
)
@click.option(
    "--model",
    type=click.Choice(["secret", "public"]),
    default="secret",
    help="Public: outputs may be sums of what the client sends, which tell the weights.",
)
@click.option("--p-error", type=_PROBABILITY, help="Of one lookup, instead of --security.")
@click.option("--global-p-error", type=_PROBABILITY, help="Of one inference, likewise.")
@click.option(
    "--parameters",
    type=click.Choice(["multi", "mono"]),
    default="multi",
    help="One set of parameters per width, or one: smaller keys, slower lookups.",
)
@click.option(
    "--input-levels/--no-input-levels",
    default=True,
    help="Of a public model: clients send the levels of inputs that a neuron reads alone.",
)
@click.option(
    "--trials",
    type=click.IntRange(0),
    default=0,
    help="Further alternatives to try, about a second each.",
)
@reads
@console.json_option
def compile_network(
    network: Path,
    client_file: Path,
    server_file: Path,
    security: str,
    model: str,
    p_error: float | None,
    global_p_error: float | None,
    parameters: str,
    input_levels: bool,
    trials: int,
    read: Reader,
    json_file: Path | None,
) -> None:
    """Compile NETWORK (ours, ONNX or TFLite) and show what it costs.  Needs no sample and no key.

    The client's file holds no weight; the server's file holds them all, as machine code.
    """
    from refqnn.fhe import compile

    with console.Bars() as bars, bars.stage("compile", None):
        circuit = compile(
            read(network),
            security=security,
            model=model,
            p_error=p_error,
            global_p_error=global_p_error,
            parameters=parameters,
            input_levels=input_levels,
            trials=trials,
        )
    circuit.save_client(client_file)
    circuit.save_server(server_file)
    sizes = circuit.key_sizes
    console.show(
        *circuit.explain().split("\n"),
        f"evaluation keys: {sizes.travelling / 1e6:.1f} MB as they travel, "
        f"{sizes.resident / 1e6:,.0f} MB of the server's memory",
    )
    told = {"layers": circuit.table(), "global_p_error": circuit.global_p_error}
    console.print_json(json_file, {**told, "keys": sizes, "reveals": circuit.reveals()})
    console.say(
        f"wrote {client_file} and {server_file}",
        f"next: refqnn fhe client keygen {client_file} --keys KEYS --evaluation-keys EVALUATION",
    )


# --- client -----------------------------------------------------------------------------------


@fhe.group(short_help="Make keys, encrypt, decrypt.")
def client() -> None:
    """The side that owns the data and the secret key."""


_KEYS = click.option(
    "--keys", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Private keys."
)


def _client(file: Path, keys: Path) -> Client:
    from refqnn.fhe import Client

    loaded = Client.load(file)
    if not keys.exists():
        expected = f"a file of: refqnn fhe client keygen {file} --keys {keys}"
        raise InvalidArgument(mismatch("--keys", f"{keys}, which does not exist", expected))
    loaded.load_keys(keys)
    return loaded


@client.command()
@click.argument("file", metavar="CLIENT", type=console.FILE)
@click.option(
    "--keys",
    type=console.NewFile(keys=True),
    required=True,
    help="Private keys, for the owner alone.",
)
@click.option(
    "--evaluation-keys", type=console.NewFile(), required=True, help="What the server gets of them."
)
@click.option("--force", is_flag=True, help="Where there are keys, set them aside as KEYS.1, ...")
def keygen(file: Path, keys: Path, evaluation_keys: Path, force: bool) -> None:
    """Make keys for the circuit of CLIENT."""
    from refqnn.fhe import Client

    loaded = Client.load(file)
    if keys.exists() and not force:
        expected = "a new file; --force sets keys aside, and new ones cannot decrypt what they did"
        raise InvalidArgument(mismatch("--keys", f"{keys}, which exists", expected))
    with console.Bars() as bars, bars.stage("generate keys", None):
        loaded.keygen()
    if keys.exists():
        aside = next(p for i in count(1) if not (p := keys.with_name(f"{keys.name}.{i}")).exists())
        keys.rename(aside)
        console.say(f"the keys that were there are in {aside}")
    loaded.save_keys(keys)
    loaded.save_evaluation_keys(evaluation_keys)
    megabytes = evaluation_keys.stat().st_size / 1e6
    console.say(
        f"wrote {keys} (keep it) and {evaluation_keys} ({megabytes:.1f} MB, for the server)",
        f"next: refqnn fhe client encrypt {file} X.npy REQUESTS --keys {keys}",
    )


@client.command()
@click.argument("file", metavar="CLIENT", type=console.FILE)
@click.argument("samples", metavar="X.npy", type=console.FILE)
@click.argument("requests", type=console.NewFile())
@_KEYS
def encrypt(file: Path, samples: Path, requests: Path, keys: Path) -> None:
    """Encrypt the samples of X.npy, floats or integer input codes, into REQUESTS."""
    loaded = _client(file, keys)
    codes = loaded.doors.codes_of(console.load_array(samples))
    with console.Bars() as bars, bars.stage("encrypt", len(codes)) as advance:
        loaded.save_requests(codes, requests, advance)
    console.say(
        f"wrote {requests}: {len(codes):,} samples",
        f"next: refqnn fhe server run SERVER {requests} ANSWERS --evaluation-keys EVALUATION",
    )


@client.command()
@click.argument("file", metavar="CLIENT", type=console.FILE)
@click.argument("answers", type=console.FILE)
@click.argument("outputs", metavar="Y.npy", type=console.NewFile())
@_KEYS
@click.option(
    "--requests", type=console.FILE, required=True, help="What ANSWERS must be the answers to."
)
@console.FORM
def decrypt(
    file: Path, answers: Path, outputs: Path, keys: Path, requests: Path, form: str | None
) -> None:
    """Decrypt ANSWERS into Y.npy, in the order of the samples."""
    loaded = _client(file, keys)
    with console.Bars() as bars, bars.stage("decrypt", None) as advance:
        integers = loaded.read_answers(answers, advance, requests=requests)
    result = console.in_form(form, integers, loaded.doors)
    write_atomically(outputs, lambda out: out.write(array_to_npy(result)))
    console.say(f"wrote {outputs}: {result.dtype} of shape {result.shape}")


# --- server -----------------------------------------------------------------------------------


@fhe.group(short_help="Compute on ciphertexts.")
def server() -> None:
    """The side that owns the network: it sees evaluation keys and ciphertexts alone."""


@server.command(name="run")
@click.argument("file", metavar="SERVER", type=console.FILE)
@click.argument("requests", type=console.FILE)
@click.argument("answers", type=console.NewFile())
@click.option(
    "--evaluation-keys", type=console.FILE, required=True, help="From the client's keygen."
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Worker processes; without it one sample after the other, each on all cores.",
)
def run_server(
    file: Path, requests: Path, answers: Path, evaluation_keys: Path, jobs: int | None
) -> None:
    """Run the circuit of SERVER on REQUESTS; a SERVER file holds machine code: know its maker."""
    from refqnn.fhe import Server
    from refqnn.fhe.batch import answer_on_workers
    from refqnn.fhe.files import reading

    with reading(requests, "requests") as asked:
        n = asked.samples()
    with console.Bars() as bars, bars.stage("run encrypted", n) as advance:
        if jobs is None:
            loaded = Server.load(file)
            loaded.load_evaluation_keys(evaluation_keys)
            loaded.answer(requests, answers, advance)
        else:
            answer_on_workers(file, evaluation_keys, requests, answers, jobs, advance)
    console.say(
        f"wrote {answers}: {n:,} samples",
        f"next: refqnn fhe client decrypt CLIENT {answers} Y.npy --keys KEYS --requests {requests}",
    )
