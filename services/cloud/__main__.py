from services.cloud import ROLE
from shared.service import serve

serve(ROLE)
