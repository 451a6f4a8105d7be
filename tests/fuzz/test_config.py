"""Any configuration: taken, or one message that says what to change. Never a traceback, never a secret."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collector.sources.building import BOXED, build, kind_of
from ops import config as listing
from ops import db as commands
from tests.fuzz.hostile import often, texts, values
from worker import registry
from worker.core import db
from worker.core.errors import Misconfigured, Unavailable
from worker.core.settings import DatabaseSettings, Settings, read
from worker.core.specs import EffectSpec, PipelineSpec, SourceSpec, VariantSpec
from worker.sinks import BOXED as SINKS
from worker.sinks import gates

SECRET = "h0t-s3cret"


def toml(value):
    """The value as TOML; what TOML has no word for is text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else str(value) if math.isinf(value) or "." in str(value) else f"{value:.1f}"
    return str(value) if isinstance(value, int) and abs(value) < 10**4000 else json.dumps(str(value))


LIKELY = st.sampled_from([True, False, 0, 1, 5, 1.5, "1", "90s", "1.5h", "id", "x:y", "a,b", '["a"]', "[1", "[" * 3000, ["a"], {}, "rules", "echo", "json", "os.path", ".", ".x", "x.py", "\x00.py",
                          "a:b:c", "$HOME", "~nobody/x", "http://h", "https://u:p@h/x", "http://[", "postgresql://x"])  # fmt: skip
anything = LIKELY | values(leaves=4)


def table(model, **fixed):
    names = st.sampled_from(list(model.model_fields))
    optional = st.dictionaries(names | names.map(lambda n: n[:-1]) | texts, anything, max_size=3)
    return st.tuples(optional, st.fixed_dictionaries(fixed)).map(lambda both: both[0] | both[1])


NAMES = st.sampled_from(["a", "files:a", "github:o/r", "x:a", "bluesky:did:plc:a", "rss:https://h/f", "telegram:a", "webhook:a"]) | texts
OPTIONS = {kind: kind_of(SourceSpec(kind=kind), kind).options for kind in BOXED}
sources = st.dictionaries(NAMES, st.sampled_from(BOXED).flatmap(lambda k: table(OPTIONS[k], kind=st.just(k))) | table(SourceSpec), max_size=2)
pipelines = st.dictionaries(
    texts, table(PipelineSpec, processor=LIKELY) | table(PipelineSpec, variants=st.dictionaries(texts, table(VariantSpec), max_size=2)), max_size=2
)
effects = st.dictionaries(texts, table(EffectSpec, sink=st.sampled_from(SINKS)) | table(EffectSpec), max_size=2)
sections = {name: table(field.annotation) for name, field in Settings.model_fields.items() if hasattr(field.annotation, "model_fields")}
files = st.fixed_dictionaries(
    {}, optional={**sections, "sources": sources, "pipelines": pipelines, "effects": effects, "enqueue": anything, "data_dir": anything}
) | st.dictionaries(texts, anything, max_size=3)
documents = (
    files.map(lambda f: "".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in f.items()).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=80)
    | st.sampled_from(
        [
            b"a = " + b"[" * 5000,
            b"a" + b".a" * 5000 + b" = 1",
            b"[" + b"a." * 3000 + b"a]",
            b"enqueue = " + b"9" * 5000,
            b"\xef\xbb\xbfenqueue = true",
            b"enqueue = 9999-99-99",
            b"data_dir = '\x00'",
            b'data_dir = "\\u0000"',
            b"[sources]\na = 1",
            b"sources = 1",
            b"sources = [[1]]",
            b"[[sources]]",
            b"[pipelines.x.options.a.a.a]",
        ]
    )
)


def one_message(call, *args):
    """What the call returns; None where it is refused, by a message that names what is wrong and no secret."""
    try:
        return call(*args)
    except Misconfigured as error:
        said = str(error)
        assert said.strip()
        assert "Traceback" not in said
        assert SECRET not in said
        said.encode("utf-8", "backslashreplace")
        return None


def all_of(environ, folder):
    """What the programs make of it before they speak to a database."""
    settings, loaded = read(environ, folder)
    listing.every(settings, loaded)
    build(settings)
    gates(settings)
    for name, spec, _ in registry.versions_of(settings, None, None):
        found = registry.find(name, spec, folder)
        registry.prompt_of(name, spec, found, folder)
        registry._options(name, spec, found)
    return settings


@often(80)
@given(document=documents)
def test_any_file(document, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    (folder / "tailrace.toml").write_bytes(document)
    one_message(all_of, {}, folder)


FILE = b'[sources.a]\nkind = "files"\npath = "/nowhere"\n[pipelines.p]\nprocessor = "echo"\n[effects.e]\nsink = "jsonl"\npath = "out"\n[sources.w]\nkind = "webhook"\nsecret_env = "S"\n'
VARIABLES = st.sampled_from(["", "DATABASE", "DATABASE__POOL_SIZE", "DATABASE_URL", "WORKER__LEASE_SECONDS", "WORKER__LEASE_SECONDS__X", "COLLECTOR__PORT", "ENQUEUE", "ENQUEUE__X", "SOURCES",
                             "SOURCES__A", "SOURCES__A__", "SOURCES__A__PATH", "SOURCES__A__PATH__X", "SOURCES__A__KIND", "SOURCES__A__EVERY", "PIPELINES__P__OPTIONS", "PIPELINES__P__OPTIONS__A__B",
                             "PIPELINES__P__VARIANTS__V__MODEL", "PIPELINES__P__SOURCES", "EFFECTS__E", "EFFECTS__E__", "EFFECTS__E__OPEN__X", "EFFECTS__E__PATH", "SOURCES__W__SECRET_ENV", "CONFIG", "PIPELINE_VERSION"])  # fmt: skip
variables = st.dictionaries(
    st.tuples(st.just("TAILRACE_"), VARIABLES | st.tuples(VARIABLES, st.text("ABC_9é\u0130", max_size=5)).map("__".join)).map("".join) | st.just("CRASHPOINT"),
    texts.filter(lambda t: "\x00" not in t) | LIKELY.map(str).filter(lambda t: "\x00" not in t), max_size=3,
)  # fmt: skip


@often(80)
@given(environ=variables)
@example(environ={"TAILRACE_SOURCES__A__PATH__X": "1"})
@example(environ={"TAILRACE_PIPELINES__P__SOURCES": "[" * 5000})
@example(environ={"TAILRACE_CONFIG": "x" * 5000})
@example(environ={"TAILRACE_CONFIG": "."})
@example(environ={"CRASHPOINT": "after-fetch-before-append:²"})
def test_any_environment(environ, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "environ"
    folder.mkdir(exist_ok=True)
    (folder / "tailrace.toml").write_bytes(FILE)
    one_message(all_of, {**environ, "S": SECRET}, folder)


@pytest.mark.parametrize("url", [
    "postgresql://u:{}@127.0.0.1:1/d", "postgresql://u:x@{}@127.0.0.1:1/d", "postgresql://u:x/{}@127.0.0.1:1/d", "postgresql://u:x#{}@127.0.0.1:1/d", "postgresql://127.0.0.1:1/d?user=u&password={}",
    "postgres://u:{}@[::1/d", "host=127.0.0.1 port=1 user=u password={}", "mysql://u:{}@h/d", "u:{}@h", "{}", "postgresql://u:{}@127.0.0.1:99999999/d", "postgresql://u:{}@127.0.0.1:x/d", "postgresql://u:%zz{}@127.0.0.1:1/d",
    "postgresql://u:{}@127.0.0.1:1/d?sslmode=nonsense", "postgresql://u:{}@127.0.0.1:1/d?connect_timeout=x",
])  # fmt: skip
async def test_no_address_of_a_database_shows_its_password(url):
    url = url.format(SECRET)
    assert SECRET not in db.shown(url)
    with pytest.raises((Misconfigured, Unavailable)) as refused:
        commands.open_url(url)
    assert SECRET not in str(refused.value)
    with pytest.raises((Misconfigured, Unavailable)) as refused:
        await db.open_pool(url, DatabaseSettings(connect_seconds=0), "fuzz", "tailrace_worker", 1)
    assert SECRET not in str(refused.value)
