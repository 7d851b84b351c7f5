from services.end import ROLE
from shared.service import serve

serve(ROLE)
