"""What operator and agents agree on about the Lease that shows that the operator is alive."""

from __future__ import annotations

OPERATOR_SILENT_SECONDS = 30.0
"""Without a renewal of its lease for so long the operator counts as silent: three renewals, so that neither a slow answer
of the API server nor one lost request counts as an outage."""

RENEW_SECONDS = 10.0
"""How often the operator renews its lease: a third of that silence, so that one renewal may be lost and another late."""

UNATTENDED_SECONDS = 20.0
"""A job whose due reconcile has not ended for so long is named in the next renewal: for it the operator counts as silent."""
