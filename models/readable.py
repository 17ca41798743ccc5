"""Features in words, for people who read an explanation."""

from __future__ import annotations

from typing import Final

from trail.scan import ANOMALIES, EVENT_TYPES

_WORDS: Final = {
    "op_place": "how far down the chain the operation is",
    "direction": "arrival or departure",
    "is_first": "first scan of the code",
    "position_log": "scans of the code before",
    "first_op": "operation the code was first seen with",
    "gap_h_log": "time since the previous scan",
    "km_log": "distance from the previous scan",
    "km_known": "the distance is known",
    "speed_kmh_log": "speed since the previous scan",
    "same_site": "the previous scan was here",
    "same_second_elsewhere": "seen elsewhere in the same second",
    "op_step": "steps down the chain since the previous scan",
    "op_drop": "steps back from the furthest operation so far",
    "tier_step": "tiers down the chain since the previous site",
    "tier_mismatch": "the operation does not belong to such a site",
    "site_known": "the site master has the site",
    "again_here": "in twice, or out twice, at one site",
    "in_after_out": "arrived where it had just left",
    "out_elsewhere": "left a site where it had not been scanned",
    "in_without_out": "arrived without having left",
    "sold_before": "sales before",
    "sold_elsewhere": "sold at another site before",
    "since_sale_h_log": "time since the sale",
    "op_before": "times this operation was scanned before",
    "repeated_here": "the same operation at the same site before",
    "repeat_gap_h_log": "time since the same operation here",
    "two_km_log": "distance from the scan before the previous one",
    "two_speed_kmh_log": "speed since the scan before the previous one",
    "back_and_forth": "back at the site before the previous one",
    "malformed": "the code is malformed",
    "company_unknown": "the company is not registered",
    "product_unknown": "the product is not registered",
    "registry": "there is a registry of products",
    "made_later": "scanned before its manufacture date",
    "age_d_log": "days since manufacture",
    "group_log": "items scanned together now",
    "group_before_log": "items scanned together at the previous scan",
    "together_share": "share of its box that came along",
    "departed_share": "share of its box that was seen again by now",
    "left_behind_log": "items of its box not seen again yet",
    "departed_elsewhere_log": "items of its box seen again elsewhere",
    "departed_here_log": "items of its box seen again here",
    "joined_share": "share of the items here that come from elsewhere",
    "lag_h_log": "time behind the first of its box",
    "lot_log": "codes of the lot commissioned so far",
    "commissioned": "the code was commissioned",
    "uncommissioned": "not in the lot's commissioning record",
    "serial_outside_log": "serial number outside the lot's range",
    "commission_gap_h_log": "time since the lot's previous commissioning",
    "lot_at_op_log": "scans of the lot with this operation",
    "lot_at_site_log": "scans of the lot at this site",
    "lot_op_share": "share of the lot that has had this operation",
    "network": "the network is known",
    "edge_known": "both sites of the leg are well known",
    "edge_unused": "the leg was never used",
    "edge_used_log": "times the leg was used",
    "edge_share": "share of the departures that take this leg",
    "region_used_log": "departures into this region",
    "step_z": "time of the leg against the usual one",
    "step_low_ratio": "time of the leg against the quickest ones",
    "step_support_log": "legs of this kind on record",
    "expected_h_log": "usual time of the leg",
    "market_known": "it is known where the product is sold",
    "market_share": "share of the product that goes to this region",
    "off_market": "the product is not sold in this region",
    "lot_loads_log": "loads of the lot that have arrived so far",
    "lot_pace": "time of the lot's loads so far against the usual ones",
    "lot_off_pace": "how far the lot's loads so far were from the usual times",
}

READABLE: Final = {
    **{f"op_{name}": f"the operation is {name}" for name in EVENT_TYPES},
    **_WORDS,
    **{f"rule_{name}": f"score of the rule for {name}" for name in ANOMALIES},
}
"""A phrase for every feature."""


def readable(feature: str) -> str:
    """A feature in words; its own name where there are none yet."""
    return READABLE.get(feature, feature)
