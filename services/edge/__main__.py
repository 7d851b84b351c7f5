from services.edge import ROLE
from shared.web.service import serve

serve(ROLE)
