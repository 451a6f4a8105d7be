"""`[sources.NAME]` of kind bluesky."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from worker.core.specs import Names, Seconds

RESOLVER = "https://public.api.bsky.app"
PLC = "https://plc.directory"
JETSTREAM = "wss://jetstream2.us-east.bsky.network/subscribe"
RELAY = "wss://bsky.network/xrpc/com.atproto.sync.subscribeRepos"


class BlueskyOptions(BaseModel):
    """`bluesky:did:plc:...` and `bluesky:a.handle` are one account; `bluesky:jetstream` and `bluesky:firehose` everything that a host sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    collections: Names = Field(
        default_factory=list, validation_alias=AliasChoices("collections", "wanted_collections"),
        description="which collections, e.g. app.bsky.feed.post or app.bsky.feed.*; none: all",
    )  # fmt: skip
    wanted_dids: Names = Field(default_factory=list, description="of a whole stream: only these accounts; none: all")
    transport: Literal["jetstream", "firehose"] | None = Field(None, description="of one account: the stream that brings its news; default jetstream")
    stream: str | None = Field(
        None, description="address of the stream; default: the public Jetstream or relay, or the account's host for a firehose"
    )
    method: Literal["car", "list"] = Field("car", description="how a repository is read: as one file, or record by record (listRecords)")
    pds: str | None = Field(None, description="address of the account's host; default: what its DID document says, asked again when it moves")
    plc: str = Field(PLC, description="address of the directory of DIDs")
    resolver: str = Field(RESOLVER, description="address of a host that resolves handles; `pds` does where it is given")
    heartbeat: Seconds = Field(60.0, gt=0, description="a stream without any frame for so long is connected anew")
    max_repo_bytes: int = Field(
        2_000_000_000, ge=1_000_000, description="a larger repository is refused; it is kept in a temporary file while it is read"
    )
