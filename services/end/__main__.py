"""The end tier: `python -m services.end`. What differs between tiers is settings alone (shared/settings.py)."""

from shared.service import serve

serve("end")
