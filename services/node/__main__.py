from services.node.settings import ROLE, NodeSettings
from shared.web.service import serve

serve(ROLE, NodeSettings, "services.node.app")
