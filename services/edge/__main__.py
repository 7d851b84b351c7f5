"""The edge tier: `python -m services.edge`. What differs between tiers is settings alone (shared/settings.py)."""

from shared.service import serve

serve("edge")
