from services.cloud import ROLE
from shared.web.service import serve

serve(ROLE)
