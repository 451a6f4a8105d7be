"""What a version is made of, and what happens when that changes under its name."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from worker import Done, Retry, registry
from worker.core.context import Context
from worker.core.errors import Misconfigured
from worker.core.models import Outage
from worker.core.settings import read
from worker.fingerprint import changes, parts_of

PROCESSOR = """
from worker import Done, processor
from helpers import clean

@processor("offers", slice_size=10{more})
async def offers(record, ctx):
    asked = ctx.render(text=record.payload["text"]) if ctx.prompt else None
    return Done({{"text": clean(record.payload["text"]), "model": ctx.model, "tone": ctx.options.get("tone")}}, input=asked)
"""
CONFIG = """
[pipelines.offers]
processor = "./offers.py"
"""


class Project:
    """A folder with a configuration, a processor and what it imports, as a user has it."""

    def __init__(self, folder, pool):
        self.folder, self.pool = folder, pool
        (folder / "helpers.py").write_text("def clean(text):\n    return text.strip()\n")
        (folder / "unrelated.py").write_text("x = 1\n")
        self.write(CONFIG)

    def write(self, config, more="", text=PROCESSOR):
        (self.folder / "tailrace.toml").write_text(config)
        (self.folder / "offers.py").write_text(text.format(more=more))

    async def register(self, **environ):
        for name in [n for n in registry.sys.modules if n.startswith("tailrace_processor_") or n == "helpers"]:
            del registry.sys.modules[name]
        settings, loaded = read(environ, self.folder)
        return await registry.register(self.pool, settings, loaded.path.parent, None, None, "test")


@pytest.fixture
def project(tmp_path, pool, monkeypatch):
    monkeypatch.setattr(registry.sys, "path", [*registry.sys.path])
    return Project(tmp_path, pool)


@pytest.mark.parametrize("change", [
    lambda p: p.write(CONFIG + 'model = "m2"\n'),
    lambda p: p.write(CONFIG + 'prompt = "Read {text}"\n'),
    lambda p: p.write(CONFIG + '[pipelines.offers.options]\ntone = "dry"\n'),
    lambda p: p.write(CONFIG, text=PROCESSOR.replace('"tone"', '"tune"')),
    lambda p: (p.folder / "helpers.py").write_text("def clean(text):\n    return text.lower()\n"),
])  # fmt: skip
async def test_every_part_of_it_makes_another_version(project, change):
    (first,) = await project.register()
    (same,) = await project.register()
    change(project)
    (other,) = await project.register()
    assert same.version == first.version
    assert other.version != first.version
    assert (first.state, other.state) == ("live", "live")
    assert await project.pool.fetchval("select state from tailrace.versions where name = $1", first.version) == "retired"


async def test_what_it_does_not_import_is_no_part_of_it(project):
    (first,) = await project.register()
    (project.folder / "unrelated.py").write_text("x = 2\n")
    project.write(CONFIG + "concurrency = 4\nslice_size = 50\nmax_attempts = 3\n")
    (same,) = await project.register()
    assert same.version_id == first.version_id


async def test_a_name_that_stands_for_something_else_is_refused_with_what_differs(project):
    project.write(CONFIG + 'version = "v1"\nmodel = "small"\nprompt = """\nYou read offers.\n{text}\n"""\n')
    await project.register()
    project.write(CONFIG + 'version = "v1"\nmodel = "large"\nprompt = """\nYou read offers carefully.\n{text}\n"""\n')
    (project.folder / "helpers.py").write_text("def clean(text):\n    return text.lower()\n")
    with pytest.raises(Misconfigured) as refused:
        await project.register()
    said = str(refused.value)
    assert 'model: "small" -> "large"' in said
    assert "-You read offers.\n  +You read offers carefully." in said
    assert "-    return text.strip()\n  +    return text.lower()" in said
    assert "new version name" in said


async def test_texts_are_stored_once(project):
    project.write(CONFIG + 'prompt = "Read {text}"\n')
    await project.register()
    project.write(CONFIG + 'prompt = "Read {text}"\nmodel = "m2"\n')
    await project.register()
    assert await project.pool.fetchval("select count(*) from tailrace.texts") == 3  # prompt, offers.py, helpers.py
    stored = json.loads(await project.pool.fetchval("select spec -> 'prompt' from tailrace.versions limit 1"))
    assert await project.pool.fetchval("select text from tailrace.texts where hash = $1", stored) == "Read {text}"


async def test_variants_run_beside_it_by_configuration_alone(project):
    project.write(
        CONFIG
        + """version = "v1"
model = "small"
prompt = "Read {text}"
[pipelines.offers.options]
tone = "dry"
length = 5
[pipelines.offers.variants.v2]
model = "large"
options = { tone = "warm" }
[pipelines.offers.variants.v3]
prompt_file = "v3.txt"
promote = "shadow"
"""
    )
    (project.folder / "v3.txt").write_text("Look at {text}")
    one, two, three = await project.register()
    assert [(r.version, r.state, r.spec.model, r.prompt) for r in (one, two, three)] == [
        ("v1", "live", "small", "Read {text}"), ("v2", "candidate", "large", "Read {text}"), ("v3", "shadow", "small", "Look at {text}"),
    ]  # fmt: skip
    assert two.options == {"tone": "warm", "length": 5}
    (only,) = await project.register(TAILRACE_PIPELINE_VERSION="v2")
    assert only.version_id == two.version_id


@pytest.mark.parametrize(("config", "said"), [
    ('prompt = "a"\nprompt_file = "b"\n', "which one is meant"),
    ('[pipelines.offers.variants.v2]\nprompt = "a"\nprompt_file = "b"\n', "which one is meant"),
    ('prompt_file = "nowhere.txt"\n', "nowhere.txt"),
    ('[pipelines.offers.variants.v2]\nmodle = "x"\n', "did you mean 'model'"),
])  # fmt: skip
async def test_a_prompt_that_cannot_be_meant_ends_with_what_to_change(project, config, said):
    project.write(CONFIG + config)
    with pytest.raises(Misconfigured, match=said):
        await project.register()


async def test_a_prompt_without_its_input_is_refused_at_the_start(project):
    project.write(CONFIG + 'prompt = "Is this an offer?"\n', more=', inputs=("text",)')
    with pytest.raises(Misconfigured, match=r"has no \{text\}"):
        await project.register()


async def test_a_model_that_was_asked_without_the_text_stops_the_version_and_no_record_suffers(register, pool, drain, seen):
    from tests.worker.conftest import append  # noqa: PLC0415  not a fixture

    async def broken(record, ctx):
        return Done({"offer": True}, input="Is this an offer? <built-in function input>")

    runnable = await register(broken, inputs=("text",))
    await append(pool, "files:a", [{"n": n, "text": f"selling {n}"} for n in range(3)])
    worker = await drain(runnable)
    assert worker.settler.totals["ok"] == 0
    assert await pool.fetchval("select count(*) from tailrace.results") == 0
    assert await pool.fetchval("select max(attempt) from tailrace.jobs") == 0
    assert "without the record's text" in await pool.fetchval("select reason from tailrace.quotas where breaker = 'open'")


async def test_what_was_asked_is_kept_by_its_hash_and_sampled(register, pool, drain):
    from tests.worker.conftest import append  # noqa: PLC0415  not a fixture

    async def asks(record, ctx):
        return Done({"n": record.payload["n"]}, input=f"Read {record.payload['text']}")

    runnable = await register(asks, inputs=("text",), slice_size=50)
    await append(pool, "files:a", [{"n": n, "text": f"text {n}"} for n in range(300)])
    await drain(runnable)
    metas = [json.loads(r[0]) for r in await pool.fetch("select meta from tailrace.results order by raw_id")]
    assert all(len(m["input_hash"]) == 32 and m["input_chars"] >= 11 for m in metas)
    assert 20 <= sum("input" in m for m in metas) < 40
    assert metas[0]["input"] == "Read text 0"


async def test_an_output_has_to_fit_its_schema(register, pool, feed, drain):
    class Offer(BaseModel):
        price: float

    async def wrong(record, ctx):
        return Done({"price": "much"} if record.payload["n"] else {"price": 3})

    runnable = await register(wrong, output=Offer, max_attempts=1, retry_rounds=0)
    await feed(2)
    await drain(runnable)
    rows = dict(await pool.fetch("select status, error -> -1 ->> 'message' from tailrace.results"))
    assert rows.keys() == {"ok", "failed"}
    assert "does not fit its schema: ('price',)" in rows["failed"]
    assert json.loads(await pool.fetchval("select spec -> 'schema' from tailrace.versions"))["required"] == ["price"]


def test_a_prompt_is_filled_in_once_and_other_braces_stay():
    context = Context("p", "v", prompt='Answer {"a": 1} for {text} of {who}')
    assert context.render(text="{who} {}", who="me") == 'Answer {"a": 1} for {who} {} of me'
    with pytest.raises(Outage, match=r"no \{missing\}"):
        context.render(missing="x")


def test_changes_of_lists_and_of_unknown_texts_are_said():
    assert changes({"texts": ["a"], "prompt": "1" * 64}, {"texts": ["b"], "prompt": "2" * 64}, {}) == [
        "prompt is another text (sha256 111111111111 -> 222222222222)", 'texts: ["a"] -> ["b"]',
    ]  # fmt: skip


def test_the_boxed_processors_have_no_file_of_the_user():
    from worker.core.specs import PipelineSpec  # noqa: PLC0415  beside its use
    from worker.processors import rules  # noqa: F401, PLC0415  registers itself

    found = registry.registered()["rules"]
    facts = parts_of(PipelineSpec(processor="rules"), found, None).facts
    assert facts["processor"] == "rules"
    assert all(not name.startswith("/") for name in facts["code"])
    assert Retry() != Done()
