"""The site book: what the service knows of sites."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from intake.text import canonical_id
from serving.history import SiteEntry
from serving.problems import Problem, documented
from serving.routes import service_of
from serving.rows import LONGEST_PLACE
from serving.security import allow
from trail.scan import TIER_NAMES

router = APIRouter(tags=["administration"], dependencies=[allow("admin")])

SiteId = Annotated[
    str, Path(max_length=LONGEST_PLACE, pattern=r"^[^\x00-\x1f\x7f]+$", examples=["101"])
]
TierName = Literal["Factory", "WMS", "Logistics_HUB", "W_Stock", "R_Stock"]


class SiteDetails(BaseModel):
    """What is known of a site; what is left out is unknown."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "Busan hub", "tier": "Logistics_HUB", "latitude": 35.1, "longitude": 129.0}
            ]
        },
    )

    name: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    tier: TierName | None = None
    latitude: Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)] | None = None
    longitude: Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _both_coordinates(self) -> SiteDetails:
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError("give latitude and longitude, or neither")
        return self


class Site(SiteDetails):
    """A site of the book; unknown details are left out."""

    location_id: str = Field(examples=["101"])
    known: bool = Field(
        description="The site master or an administrator named it, not only a scan."
    )


@router.put(
    "/admin/sites/{id}",
    summary="Enter a site, or replace what is known of it",
    response_model_exclude_none=True,
    responses=documented(401, 403, 404, 405, 413, 422, 429, 500, 503),
)
async def put_site(id: SiteId, details: SiteDetails, request: Request) -> Site:
    """Scans are judged with it from the next request on. `id` is the scans' `location_id`."""
    service = service_of(request)
    site = canonical_id(id)
    if not site:
        raise Problem(422, "the id of a site is empty", "invalid")
    entry = SiteEntry(
        id=site,
        name=details.name.strip(),
        tier=-1 if details.tier is None else TIER_NAMES.index(details.tier),
        latitude=math.nan if details.latitude is None else details.latitude,
        longitude=math.nan if details.longitude is None else details.longitude,
        known=True,
    )
    await service.in_core(service.scorer.add_site, entry)
    return _site(entry)


@router.get(
    "/admin/sites",
    summary="All sites of the book",
    response_model_exclude_none=True,
    responses=documented(401, 403, 429, 500, 503),
)
async def sites(request: Request) -> list[Site]:
    """Sites of the master, of administrators, and unknown ones that only scans have named."""
    return [_site(entry) for entry in await asyncio.to_thread(service_of(request).history.book)]


def _site(entry: SiteEntry) -> Site:
    return Site(
        location_id=entry.id,
        name=entry.name,
        tier=TIER_NAMES[entry.tier] if entry.tier >= 0 else None,  # type: ignore[arg-type]
        latitude=None if math.isnan(entry.latitude) else entry.latitude,
        longitude=None if math.isnan(entry.longitude) else entry.longitude,
        known=entry.known,
    )
