from services.end import ROLE
from shared.web.service import serve

serve(ROLE)
