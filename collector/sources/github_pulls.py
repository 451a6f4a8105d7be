"""What is asked of a pull request, and the record that is made of the answer."""

from __future__ import annotations

import json
from typing import Any

import orjson

from collector.record import Builder, RecordOptions, digest_of, without
from collector.sources.github_orders import created, time_of
from worker.core.models import RawRecord

# Costs a point per hundred connections: four of each pull request, so 4 points for a page of 100.
_QUERY = """
query($owner: String!, $name: String!, $by: IssueOrder!, $first: Int!, $after: String) {
  rateLimit { cost limit remaining resetAt }
  repository(owner: $owner, name: $name) {
    pullRequests(first: $first, after: $after, orderBy: $by) {
      totalCount
      pageInfo { hasNextPage endCursor }
      nodes {
        number databaseId fullDatabaseId id url title body state isDraft author { ...who } mergedBy { ...who }
        createdAt updatedAt closedAt mergedAt additions deletions changedFiles baseRefName headRefName
        commits { totalCount } comments { totalCount } labels(first: 100) { totalCount nodes { name } }
        reviews%s
        %s
      }
    }
  }
}
fragment who on Actor {
  __typename login
  ... on User { databaseId } ... on Bot { databaseId } ... on Mannequin { databaseId } ... on Organization { databaseId }
}"""
_REVIEWS = "(first: 100) { totalCount nodes { id state submittedAt author { ...who } } }"
_COUNTED = " { totalCount }"


def query(fields: str, *, reviews: bool) -> str:
    return _QUERY % (_REVIEWS if reviews else _COUNTED, fields)


class Records:
    """`ignored`: fields whose change alone is no revision."""

    def __init__(self, ignored: list[str]) -> None:
        self._ignored = ["updatedAt", *ignored]
        options = RecordOptions(id_field=["number"], time_field="createdAt", version_field="updatedAt", ignore_fields=self._ignored)
        self._builder = Builder(options)

    def record(self, node: dict[str, Any]) -> RawRecord:
        """Also of one that lacks what it should have, or that jsonb cannot hold: then the defect is in meta."""
        named = node.get("databaseId") is not None or node.get("fullDatabaseId") is not None  # the first has 31 bits: a large one is null there
        lacks = [what for what, there in (("no databaseId", named), ("no author", node.get("author") is not None)) if not there]
        made = self._builder.build(_text(node), {"defect": ", ".join(lacks)} if lacks else {})
        number = node.get("number")
        if made.payload is not None or type(number) is not int:
            return made
        return made._replace(
            external_id=str(number), digest=self._digest(node), occurred_at=created(node), source_time=time_of(node.get("updatedAt"))
        )

    def _digest(self, node: Any) -> bytes:
        for path in self._ignored:
            node = without(node, path)
        return digest_of(json.dumps(node, sort_keys=True).encode())


def _text(node: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(node)
    except TypeError:  # what orjson refuses, jsonb will as well: the builder says why
        return json.dumps(node, separators=(",", ":")).encode()
