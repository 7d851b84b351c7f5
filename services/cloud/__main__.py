"""The cloud tier: `python -m services.cloud`. What differs between tiers is settings alone (shared/settings.py)."""

from shared.service import serve

serve("cloud")
