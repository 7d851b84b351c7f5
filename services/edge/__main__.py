from services.edge import ROLE
from shared.service import serve

serve(ROLE)
