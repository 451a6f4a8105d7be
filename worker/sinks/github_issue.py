"""github_issue: one tracker issue per fingerprint. It is opened, commented on and counted up while the thing fails, closed when it works again.

The body of an effect: {"title", "body", "fingerprint", "repo"?, "labels"?, "close"?}. GitHub knows no idempotency key, so what was done is
marked in the issue, in comments of HTML that nobody sees: the fingerprint, and the keys of deliveries. Each step looks for its mark first; an
unknown outcome that leaves no trace waits for a person unless the kind says never_lost.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import orjson
from pydantic import BaseModel, ConfigDict, Field

from worker.core.errors import Misconfigured
from worker.core.models import Delivery, Receipt
from worker.core.specs import Names
from worker.sinks import sink
from worker.sinks.github_marks import LONGEST_TITLE, body_of, counted_up, first_body, harmless, mark, sent
from worker.sinks.http import Answer, Receiver, ambiguous, bounded, from_env, retry_after

PAGE, PAGES = 100, 30  # issues in an answer; answers that are looked through
MOST = 16_000_000  # bytes of one of them
PAUSE = 60.0  # seconds, where a limit does not say how long
_LATER, _NOT_THERE = (403, 429), (404, 405)
_REPO = re.compile(r"[\w-]+/(?!\.{1,2}$)[\w.-]+", re.ASCII)


class GithubIssueOptions(BaseModel):
    """`[effects.KIND]` with sink github_issue."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    token_env: str = Field("GITHUB_TOKEN", description="environment variable that holds a token that may write issues")
    repo: str | None = Field(None, description="owner/repo; `repo` of the body and an effect's target go before it")
    labels: Names = Field(default_factory=list, description="put on each issue that is opened, beside those of the body")
    label: str | None = Field(None, description="one more; only open issues that have it are looked through. Setting it needs push access")
    base_url: str = Field("https://api.github.com", description="another one for an Enterprise Server: https://host/api/v3")
    timeout: float = Field(20.0, gt=0, description="of one call; a delivery takes a few")


class Failed(Exception):
    """The delivery ends here, with this receipt."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__(receipt.detail)
        self.receipt = receipt


@sink("github_issue", GithubIssueOptions, lambda _options: "never_twice")
class GithubIssue:
    """One delivery after the other, so that two of one fingerprint do not both open an issue; two processes may: the elder one is then used."""

    def __init__(self, kind: str, options: GithubIssueOptions) -> None:
        if options.repo and not _REPO.fullmatch(options.repo):
            raise Misconfigured(f"effects.{kind}: repo: {options.repo!r} names no repository", "write it as owner/repo")
        token = from_env(kind, options.token_env).get_secret_value()
        self._o = options
        self._receiver = Receiver("GitHub", options.timeout, [token])
        self._headers = {
            "authorization": f"Bearer {token}", "accept": "application/vnd.github+json", "content-type": "application/json",
            "x-github-api-version": "2022-11-28", "user-agent": "tailrace",
        }  # fmt: skip
        self._labels = [*options.labels, *([options.label] if options.label else [])]
        self._alone = asyncio.Lock()
        self.timeout = options.timeout * 3
        self.close = self._receiver.close

    async def send(self, delivery: Delivery) -> Receipt:
        said = delivery.body if isinstance(delivery.body, dict) else {}
        repo = str(said.get("repo") or delivery.target or self._o.repo or "")
        if not _REPO.fullmatch(repo):
            return Receipt("failed", detail=f"no repository: {repo!r} is not owner/repo, and the kind has none")
        if not said.get("fingerprint") or not (said.get("title") or said.get("close")):
            return Receipt("failed", detail="the body needs a fingerprint, and a title unless it closes")
        try:
            async with asyncio.timeout(self._o.timeout):
                await self._alone.acquire()
        except TimeoutError:
            return Receipt("retry", detail="the deliveries before it take long", after=self._o.timeout)
        try:
            return await self._told(f"/repos/{repo}/issues", repo, said, delivery)
        except Failed as ended:
            known = ended.receipt
            return known if known.outcome != "uncertain" else Receipt(ambiguous(delivery.policy), detail=known.detail, after=known.after)
        finally:
            self._alone.release()

    async def _told(self, path: str, repo: str, said: dict[str, Any], delivery: Delivery) -> Receipt:
        found = await self._marked(path, mark("issue", str(said["fingerprint"])), "open")
        if said.get("close"):
            for issue in found:
                await self._update(path, issue, said, delivery)
                await self._ask("PATCH", f"{path}/{issue['number']}", {"state": "closed", "state_reason": "completed"})
            return sent(repo, found, "closed" if found else "nothing was open")
        opened = mark("opened", delivery.key)
        if not found and delivery.attempt > 1:
            found = await self._marked(path, opened, "closed", pages=2)
        if not found:
            return await self._open(path, repo, said, delivery)
        if opened in body_of(found[0]):
            return sent(repo, found, "was there already")
        await self._update(path, found[0], said, delivery)
        return sent(repo, found, "counted up")

    async def _open(self, path: str, repo: str, said: dict[str, Any], delivery: Delivery) -> Receipt:
        """An unknown outcome is looked into at once."""
        given = said.get("labels") or []
        labels = list(dict.fromkeys([*self._labels, *map(str, given if isinstance(given, list) else [given])]))
        found: list[dict[str, Any]] = []
        try:
            body = first_body(said.get("body"), str(said["fingerprint"]), delivery.key)
            issue = await self._ask("POST", path, {"title": harmless(said["title"], LONGEST_TITLE), "body": body, "labels": labels})
        except Failed as ended:
            if ended.receipt.outcome != "uncertain":
                raise
            with suppress(Failed):
                found = await self._marked(path, mark("opened", delivery.key), "open")
            if not found:
                raise
            return sent(repo, found, "opened, although no answer said so")
        return sent(repo, [issue], "opened")

    async def _update(self, path: str, issue: dict[str, Any], said: dict[str, Any], delivery: Delivery) -> None:
        """Counted in the body, where nothing is counted twice; then a comment, which is looked for where an earlier try may have made it."""
        counted, body, where = mark("counted", delivery.key), body_of(issue), f"{path}/{issue['number']}"
        again = counted in body
        if not again:
            await self._ask("PATCH", where, {"body": counted_up(body, counted, by=0 if said.get("close") else 1)})
        if again and await self._commented(where, counted):
            return
        text = said.get("body") or ("It works again." if said.get("close") else said.get("title"))
        try:
            await self._ask("POST", f"{where}/comments", {"body": f"{harmless(text)}\n\n{counted}"})
        except Failed as ended:
            there = False
            with suppress(Failed):
                there = ended.receipt.outcome == "uncertain" and await self._commented(where, counted)
            if not there:
                raise

    async def _commented(self, where: str, counted: str) -> bool:
        for page in range(1, PAGES):
            comments = await self._ask("GET", f"{where}/comments?per_page={PAGE}&page={page}", missing=[])
            if any(counted in body_of(c) for c in comments):
                return True
            if len(comments) < PAGE:
                break
        return False

    async def _marked(self, path: str, wanted: str, state: str, pages: int = PAGES) -> list[dict[str, Any]]:
        """Issues in this state that hold the mark, the eldest first. The search of GitHub would know new ones too late."""
        found: list[dict[str, Any]] = []
        labelled = f"&labels={quote(self._o.label, safe='')}" if self._o.label else ""
        for page in range(1, pages + 1):
            issues = await self._ask("GET", f"{path}?state={state}&sort=created&direction=desc&per_page={PAGE}&page={page}{labelled}")
            found += [i for i in issues if "pull_request" not in i and type(i.get("number")) is int and wanted in body_of(i)]
            if len(issues) < PAGE:
                return found[::-1]
        if found or state == "closed":
            return found[::-1]
        raise Failed(Receipt("failed", detail=f"more than {PAGE * PAGES} open issues: the one of this fingerprint cannot be looked for; set `label`"))

    async def _ask(self, method: str, path: str, body: Any = None, missing: Any = None) -> Any:
        """The JSON of an answer. Raises Failed; what is not there is `missing`, where that is given. Only a POST may do harm twice."""
        told: list[Answer] = []

        def read(answer: Answer, usual: Receipt) -> Receipt:
            told.append(answer)
            return _limited(answer, usual)

        url, policy = f"{self._o.base_url.rstrip('/')}{path}", "never_twice" if method == "POST" else "idempotent"
        receipt = await self._receiver.post(url, b"" if body is None else orjson.dumps(body), self._headers, policy, read, method, MOST)
        if missing is not None and told and told[0].status in _NOT_THERE:
            return missing
        if receipt.outcome != "sent":
            raise Failed(receipt)
        found = None
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(told[0].content)
        if method == "GET" and not (isinstance(found, list) and all(isinstance(thing, dict) for thing in found)):
            raise Failed(Receipt("retry", detail="GitHub's answer was cut off, or is no list"))
        return found


def _limited(answer: Answer, usual: Receipt) -> Receipt:
    """GitHub refuses with 403 also what it only asks to do later: then it says when, or which limit it is."""
    if answer.status not in _LATER:
        return usual
    after, reset = retry_after(answer.headers), answer.headers.get("x-ratelimit-reset", "")
    if after is None and answer.headers.get("x-ratelimit-remaining") == "0" and reset.isascii() and reset.isdigit():
        after = bounded(float(reset) - time.time())
    if after is None and b"rate limit" not in answer.content.lower():
        return usual
    return Receipt("retry", detail=usual.detail, after=PAUSE if after is None else after)
