"""The sink github_issue: one issue per fingerprint, whatever goes wrong between its calls."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict, deque

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.core.errors import Misconfigured
from worker.core.http import _Server
from worker.core.specs import EffectSpec
from worker.sinks import build, policy_of

TOKEN = "ghp_of-the-test-only"
FAILS = {"repo": "o/r", "title": "Backfill fails", "body": "because", "labels": ["ops"], "fingerprint": "backfill:x"}
WORKS = {"repo": "o/r", "fingerprint": "backfill:x", "close": True}
SECONDARY = (403, {"Retry-After": "7"}, {"message": "You have exceeded a secondary rate limit"})


class Tracker:
    """Issues and comments of one repository. `faults[op]`: what the next calls of `list`, `open`, `edit`, `comments` and `comment` get:
    (status, headers, body); or `lost`, no answer and no effect; or `late`, the effect without an answer.
    """

    def __init__(self):
        self.issues, self.comments, self.faults, self.calls, self.never = [], defaultdict(list), defaultdict(deque), [], asyncio.Event()

    async def start(self):
        base = "/repos/o/r/issues"
        routes = [
            Route(base, self.of("list", self.list), methods=["GET"]), Route(base, self.of("open", self.open), methods=["POST"]),
            Route(base + "/{n:int}", self.of("edit", self.edit), methods=["PATCH"]),
            Route(base + "/{n:int}/comments", self.of("comments", lambda r, _: self.page(r, self.comments[r.path_params["n"]])), methods=["GET"]),
            Route(base + "/{n:int}/comments", self.of("comment", self.comment), methods=["POST"]),
        ]  # fmt: skip
        self._server = _Server(uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, lifespan="off"))
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.wait([self._task], timeout=0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def stop(self):
        self.never.set()
        self._server.should_exit = self._server.force_exit = True
        await self._task

    def of(self, name, call):
        async def answer(request):
            self.calls.append(name)
            assert request.headers["authorization"] == f"Bearer {TOKEN}"
            fault = self.faults[name].popleft() if self.faults[name] else None
            if isinstance(fault, tuple):
                status, headers, body = fault
                return Response(body if isinstance(body, bytes) else json.dumps(body), status, headers)
            asked = await request.body()
            done = call(request, json.loads(asked) if asked else {}) if fault != "lost" else None
            if fault:
                await self.never.wait()
            return JSONResponse(done, 201 if name in ("open", "comment") else 200)

        return answer

    def page(self, request, things):
        size, page = (int(request.query_params[k]) for k in ("per_page", "page"))
        return things[size * (page - 1) : size * page]

    def list(self, request, _):
        wanted = set(filter(None, request.query_params.get("labels", "").split(",")))
        here = [i for i in reversed(self.issues) if i["state"] == request.query_params["state"] and wanted <= set(i["labels"])]
        return self.page(request, here)

    def open(self, _request, asked):
        self.issues.append({"number": len(self.issues) + 1, "state": "open", **asked})
        return self.issues[-1]

    def edit(self, request, asked):
        self.issues[request.path_params["n"] - 1].update(asked)
        return self.issues[request.path_params["n"] - 1]

    def comment(self, request, asked):
        self.comments[request.path_params["n"]].append(asked)
        return asked

    @property
    def counts(self):
        """Of each open issue, as people see it."""
        return [int(re.findall(r"^failures: (\d+)", i["body"], re.MULTILINE)[-1]) for i in self.issues if i["state"] == "open"]

    @property
    def texts(self):
        """What people see of the comments."""
        return [re.sub(r"\s*<!--.*?-->", "", c["body"]) for n in sorted(self.comments) for c in self.comments[n]]


@pytest.fixture
async def tracker():
    made = Tracker()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def sink(tracker, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN + "\n")
    made = []

    def make(**options):
        made.append(build("k", EffectSpec(sink="github_issue", **({"base_url": tracker.url, "timeout": 0.5} | options))))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def test_the_first_failure_opens_an_issue_and_the_next_ones_count_it_up(tracker, sink, delivery):
    made = sink(labels=["tailrace"])
    found = [await made.send(delivery("never_twice", body=FAILS, key=f"key-{n}")) for n in range(3)]
    assert [(r.outcome, r.remote_id, r.detail) for r in found] == [
        ("sent", "o/r#1", "opened"), ("sent", "o/r#1", "counted up"), ("sent", "o/r#1", "counted up"),
    ]  # fmt: skip
    assert [(i["title"], i["labels"]) for i in tracker.issues] == [("Backfill fails", ["tailrace", "ops"])]
    assert re.sub(r"\s*<!--.*?-->", "", tracker.issues[0]["body"]) == "because\nfailures: 3"
    assert tracker.texts == ["because", "because"]
    assert (await made.send(delivery(body=FAILS | {"fingerprint": "another"}, key="key-9"))).remote_id == "o/r#2"
    assert tracker.counts == [3, 1]


async def test_what_works_again_is_closed_and_what_fails_anew_is_opened_anew(tracker, sink, delivery):
    made = sink()
    for number, body in enumerate([FAILS, FAILS, WORKS, WORKS, FAILS]):
        assert (await made.send(delivery("never_twice", body=body, key=f"key-{number}"))).outcome == "sent"
    assert [(i["state"], i.get("state_reason")) for i in tracker.issues] == [("closed", "completed"), ("open", None)]
    assert tracker.counts == [1]
    assert tracker.texts == ["because", "It works again."]
    assert "failures: 2" in tracker.issues[0]["body"]


@pytest.mark.parametrize("body", [FAILS, WORKS])
async def test_a_delivery_that_was_done_is_not_done_again(tracker, sink, delivery, body):
    made = sink()
    await made.send(delivery(body=FAILS, key="first"))
    for attempt in (1, 2):
        assert (await made.send(delivery("never_twice", attempt, body=body, key="second"))).outcome == "sent"
        assert (await made.send(delivery("never_twice", attempt + 1, body=FAILS, key="first"))).outcome == "sent"
    assert len(tracker.issues) == 1
    assert len(tracker.texts) == 1
    assert tracker.counts == ([2] if body is FAILS else [])


async def test_deliveries_at_once_do_not_open_two_issues(tracker, sink, delivery):
    made = sink(timeout=5)
    found = await asyncio.gather(*(made.send(delivery("never_twice", body=FAILS, key=f"key-{n}")) for n in range(8)))
    assert {r.outcome for r in found} == {"sent"}
    assert (len(tracker.issues), tracker.counts, len(tracker.texts)) == (1, [8], 7)


async def test_one_that_waits_too_long_for_its_turn_is_surely_not_sent(tracker, sink, delivery):
    made = sink()
    tracker.faults["list"].extend(["lost"] * 2)
    found = await asyncio.gather(*(made.send(delivery("never_twice", body=FAILS, key=f"key-{n}")) for n in range(2)))
    assert [r.outcome for r in found] == ["retry", "retry"]
    assert tracker.issues == []


@pytest.mark.parametrize(("fault", "policy", "outcome", "issues"), [
    ("late", "never_twice", "sent", 1), ("late", "never_lost", "sent", 1),
    ("lost", "never_twice", "uncertain", 0), ("lost", "never_lost", "retry", 0),
    ((502, {}, b"<html>"), "never_twice", "uncertain", 0), ((502, {}, b"<html>"), "never_lost", "retry", 0),
    (SECONDARY, "never_twice", "retry", 0),
])  # fmt: skip
async def test_an_unknown_outcome_of_opening_is_looked_into(tracker, sink, delivery, fault, policy, outcome, issues):
    tracker.faults["open"].append(fault)
    made = sink()
    assert (await made.send(delivery(policy, body=FAILS))).outcome == outcome
    assert len(tracker.issues) == issues
    again = await made.send(delivery(policy, 2, body=FAILS))
    assert (again.outcome, again.remote_id, tracker.counts, tracker.texts) == ("sent", "o/r#1", [1], [])


async def test_an_outcome_that_cannot_be_looked_into_stays_unknown(tracker, sink, delivery):
    tracker.faults["open"].append("late")
    tracker.faults["list"].extend([(200, {}, []), (502, {}, b"")])
    made = sink()
    assert (await made.send(delivery("never_twice", body=FAILS))).outcome == "uncertain"
    tracker.issues[0]["state"] = "closed"  # by somebody, before it is looked into
    assert (await made.send(delivery("never_twice", 2, body=FAILS))).detail == "was there already"
    assert len(tracker.issues) == 1


@pytest.mark.parametrize(("fault", "policy", "outcome", "there"), [
    ("late", "never_twice", "sent", 1), ("late", "never_lost", "sent", 1),
    ("lost", "never_twice", "uncertain", 0), ("lost", "never_lost", "retry", 0), (SECONDARY, "never_twice", "retry", 0),
])  # fmt: skip
@pytest.mark.parametrize("body", [FAILS, WORKS])
async def test_an_unknown_outcome_of_a_comment_is_looked_into(tracker, sink, delivery, body, fault, policy, outcome, there):
    made = sink()
    await made.send(delivery(body=FAILS, key="first"))
    tracker.faults["comment"].append(fault)
    assert (await made.send(delivery(policy, body=body, key="second"))).outcome == outcome
    assert len(tracker.texts) == there
    assert (await made.send(delivery(policy, 2, body=body, key="second"))).outcome == "sent"
    assert len(tracker.texts) == 1
    assert tracker.counts == ([2] if body is FAILS else [])


@pytest.mark.parametrize(("call", "fault"), [
    *[(call, fault) for call in ("list", "edit") for fault in ("late", "lost", (502, {}, b""))], ("list", (200, {}, b'[{"number":')),
])  # fmt: skip
async def test_what_does_no_harm_twice_is_simply_tried_again(tracker, sink, delivery, call, fault):
    made = sink()
    await made.send(delivery(body=FAILS, key="first"))
    tracker.faults[call].append(fault)
    found = await made.send(delivery("never_twice", body=FAILS, key="second"))
    if found.outcome == "retry":
        found = await made.send(delivery("never_twice", 2, body=FAILS, key="second"))
    assert found.outcome == "sent"
    assert (tracker.counts, tracker.texts) == ([2], ["because"])


@pytest.mark.parametrize(("answer", "outcome", "after"), [
    ((403, {"Retry-After": "7"}, {}), "retry", 7.0),
    ((429, {"Retry-After": "7"}, {}), "retry", 7.0),
    ((403, {}, {"message": "You have exceeded a secondary rate limit and have been temporarily blocked from content creation."}), "retry", 60.0),
    ((403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "5"}, {"message": "API rate limit exceeded"}), "retry", 0.0),
    ((403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9" * 12}, {}), "retry", 86400.0),
    ((401, {}, {"message": f"Bad credentials {TOKEN}"}), "retry", None),
    ((503, {"Retry-After": "3"}, {}), "retry", 3.0),
    ((403, {}, {"message": "Resource not accessible by personal access token"}), "failed", None),
    ((404, {}, {"message": "Not Found"}), "failed", None),
    ((410, {}, {"message": "Issues are disabled for this repo"}), "failed", None),
    ((422, {}, {"message": "Validation Failed"}), "failed", None),
    ((301, {"Location": "/repositories/1/issues"}, {"message": "Moved Permanently"}), "failed", None),
])  # fmt: skip
@pytest.mark.parametrize("call", ["list", "open"])
async def test_what_github_refuses(tracker, sink, delivery, call, answer, outcome, after):
    tracker.faults[call].append(answer)
    receipt = await sink().send(delivery("never_twice", body=FAILS))
    assert (receipt.outcome, receipt.after) == (outcome, after)
    assert f"GitHub answered {answer[0]}" in receipt.detail
    assert TOKEN not in receipt.detail
    assert tracker.issues == []


async def test_no_connection_is_surely_not_sent(sink, delivery):
    receipt = await sink(base_url="http://127.0.0.1:1").send(delivery("never_twice", body=FAILS))
    assert (receipt.outcome, receipt.detail) == ("retry", "no connection to GitHub: ConnectError")


async def test_texts_cannot_pretend_to_be_marks_and_are_cut(tracker, sink, delivery):
    made = sink()
    await made.send(delivery(body=FAILS, key="first"))
    quoted = tracker.issues[0]["body"]
    await made.send(delivery(body=FAILS | {"fingerprint": "other", "body": quoted * 400, "title": "t" * 300}, key="second"))
    await made.send(delivery(body=FAILS, key="third"))
    assert tracker.counts == [2, 1]
    assert (len(tracker.issues[1]["title"]), len(tracker.issues[1]["body"]) < 65_536) == (256, True)


async def test_an_issue_that_people_edited_is_still_found(tracker, sink, delivery):
    made = sink()
    for key in ("a", "b"):
        await made.send(delivery(body=FAILS, key=key))
    tracker.issues[0]["body"] = "I look into it.\r\n" + tracker.issues[0]["body"].replace("\n", "\r\n")
    await made.send(delivery(body=FAILS, key="c"))
    assert tracker.counts == [3]
    assert tracker.issues[0]["body"].startswith("I look into it.\r\nbecause")
    assert (await made.send(delivery(attempt=2, body=FAILS, key="b"))).outcome == "sent"
    assert tracker.counts == [3]
    tracker.issues[0]["body"] = tracker.issues[0]["body"].replace("failures: 3", "")
    await made.send(delivery(body=FAILS, key="d"))
    assert len(tracker.issues) == 1


async def test_the_marks_of_an_issue_that_fails_for_long_do_not_fill_it(tracker, sink, delivery):
    made = sink()
    for number in range(60):
        await made.send(delivery(body=FAILS, key=f"key-{number}"))
    assert (tracker.counts, tracker.issues[0]["body"].count("tailrace:counted:")) == ([60], 20)
    assert len(tracker.issues[0]["body"]) < 2000


async def test_it_looks_through_all_open_issues_or_those_with_its_label(tracker, sink, delivery):
    made, labelled = sink(timeout=5), sink(timeout=5, label="by tailrace")
    await made.send(delivery(body=FAILS, key="first"))
    await labelled.send(delivery(body=FAILS | {"fingerprint": "other"}, key="second"))
    marks = tracker.issues[0]["body"]
    tracker.open(None, {"title": "a pull request that quotes it", "body": marks, "labels": [], "pull_request": {}})
    for number in range(250):
        tracker.open(None, {"title": f"t{number}", "body": None, "labels": []})
    tracker.calls.clear()
    assert (await made.send(delivery(body=FAILS, key="third"))).remote_id == "o/r#1"
    assert tracker.calls.count("list") == 3
    assert (await labelled.send(delivery(body=FAILS | {"fingerprint": "other"}, key="fourth"))).remote_id == "o/r#2"
    assert tracker.calls.count("list") == 4
    for number in range(2900):
        tracker.open(None, {"title": f"t{number}", "body": "", "labels": []})
    receipt = await made.send(delivery(body=FAILS | {"fingerprint": "third"}, key="fifth"))
    assert (receipt.outcome, "set `label`" in receipt.detail) == ("failed", True)


@pytest.mark.parametrize(("body", "target", "detail"), [
    ("text", "o/r", "needs a fingerprint"), ({"title": "t"}, "o/r", "needs a fingerprint"), ({"fingerprint": "f"}, "o/r", "and a title"),
    ({"title": "t", "fingerprint": "f"}, "", "no repository"), (FAILS | {"repo": "o/.."}, "o/r", "'o/..' is not owner/repo"),
    (FAILS | {"repo": "../../x"}, "", "no repository"), (FAILS | {"repo": "o/r?x="}, "", "no repository"),
])  # fmt: skip
async def test_what_cannot_be_said_is_not_asked_about(tracker, sink, delivery, body, target, detail):
    receipt = await sink().send(delivery("never_twice", body=body, target=target))
    assert (receipt.outcome, detail in receipt.detail) == ("failed", True)
    assert tracker.calls == []


async def test_where_it_goes_is_said_by_the_body_else_by_the_target_else_by_the_kind(tracker, sink, delivery):
    body = {k: v for k, v in FAILS.items() if k != "repo"}
    found = [
        await sink(repo="x/y").send(delivery(body=FAILS, target="z/z", key="1")), await sink(repo="x/y").send(delivery(body=body, target="o/r", key="2")),
        await sink(repo="o/r").send(delivery(body=body, target="", key="3")),
    ]  # fmt: skip
    assert {r.remote_id for r in found} == {"o/r#1"}


@pytest.mark.parametrize(("spec", "message"), [
    ({"repo": "nowhere"}, "'nowhere' names no repository"), ({"token_env": "NOT_SET"}, "NOT_SET is not set"), ({"tokenenv": "X"}, "did you mean 'token_env'"),
])  # fmt: skip
def test_a_kind_that_cannot_be_built_says_what_to_do(monkeypatch, spec, message):
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    with pytest.raises(Misconfigured, match=message) as refused:
        build("k", EffectSpec(sink="github_issue", **spec))
    assert TOKEN not in str(refused.value)


def test_what_nobody_knows_waits_for_a_person_unless_the_kind_says_otherwise():
    assert policy_of("k", EffectSpec(sink="github_issue")) == "never_twice"
    assert policy_of("k", EffectSpec(sink="github_issue", policy="never_lost")) == "never_lost"


@pytest.fixture
async def stood(shared, monkeypatch):
    monkeypatch.syspath_prepend(str(shared / "services"))
    from standin import Standin  # noqa: PLC0415  only where it is there

    service = await asyncio.to_thread(Standin, "github", "--creations", "8")
    yield service
    await asyncio.to_thread(service.stop)


@pytest.mark.shared
async def test_against_the_stand_in(stood, sink, delivery):
    made, where = sink(base_url=stood.url, timeout=2), "octo/small"
    fails, works = FAILS | {"repo": where}, WORKS | {"repo": where}

    async def send(body=fails, key="key", policy="never_twice", attempt=1, **fault):
        if fault:
            await asyncio.to_thread(stood.fault, **fault)
        receipt = await made.send(delivery(policy, attempt, body=body, key=key))
        return receipt.outcome, receipt.detail

    async def issues():
        return [
            (i["number"], i["state"], i["body"].count("failures: 2"), len(i["comment_bodies"]))
            for i in await asyncio.to_thread(stood.control, "issues")
        ]

    assert await send(key="1", do="drop_after", op="POST /repos/issues") == ("sent", "opened, although no answer said so")
    assert await send(key="1", attempt=2) == ("sent", "was there already")
    assert (await send(key="2", do="secondary", retry_after=3, op="POST /repos/issues/N/comments"))[0] == "retry"
    assert await send(key="2", attempt=2) == ("sent", "counted up")
    assert await issues() == [(8, "open", 1, 1)]
    assert await send(works, key="3") == ("sent", "closed")
    assert await issues() == [(8, "closed", 1, 2)]
    assert (await send(key="4", do="drop", op="POST /repos/issues"))[0] == "uncertain"
    assert (await send(key="5", do="status", status=502, op="GET /repos/issues"))[0] == "retry"
    assert len(await issues()) == 1
    for number in range(6):
        outcome, detail = await send(fails | {"fingerprint": f"f{number}"}, key=f"many-{number}")
        if outcome != "sent":
            break
    assert (outcome, "content creation" in detail) == ("retry", True)
    assert (await send(fails | {"repo": "octo/none"}, key="none"))[0] == "failed"
