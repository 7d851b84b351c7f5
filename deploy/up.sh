#!/usr/bin/env bash
# Bring the containers up, wait until they are healthy, and say where to look.
# TIERWISE_DASHBOARDS=0 leaves Grafana out. TIERWISE_BUILD=0 takes the images as they are. TIERWISE_LINKS=simulated or none does without a kernel that can shape.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v docker >/dev/null || { echo "make up: Docker is not installed; \`make serve\` runs the tiers without it" >&2; exit 2; }
while IFS='=' read -r name value; do  # as Compose does it: the environment wins over .env
  [ -z "$name" ] || [ -n "${!name+x}" ] || export "$name=$value"
done <<<"$(grep -shE '^[A-Z0-9_]+=' .env || true)"
if docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
  export COMPOSE_FILE="${COMPOSE_FILE:-docker-compose.yml}:deploy/compose.gpu.yml"
  echo "NVIDIA runtime found: tiers run on the GPU"
fi

[ "${TIERWISE_BUILD:-1}" = 0 ] || docker compose build end end-shaper
if [ "${TIERWISE_LINKS:-netem}" = netem ]; then  # say it now: a tier without shape must not start
  docker run --rm --network none --cap-drop ALL --cap-add NET_ADMIN tierwise-shaper python -m services.shaper --check
fi
services=(end edge cloud prometheus)
[ "${TIERWISE_DASHBOARDS:-1}" = 0 ] || services+=(grafana)
wait=--wait
[[ ${COMPOSE_FILE:-} != *compose.quiet.yml* ]] || wait=  # without health checks Compose has nothing to wait for
docker compose up -d $wait --no-build "${services[@]}" || {
  docker compose ps --all --quiet | xargs docker inspect --format '{{.Name}} {{.State.Status}}, exit {{.State.ExitCode}}, restarts {{.RestartCount}}'
  docker compose logs --tail 5
  exit 1
}

echo
echo "API         http://${TIERWISE_BIND:-127.0.0.1:8080}/docs"
echo "Prometheus  http://127.0.0.1:${TIERWISE_PROMETHEUS_PORT:-9090}"
[ "${TIERWISE_DASHBOARDS:-1}" = 0 ] || echo "Dashboards  http://127.0.0.1:${TIERWISE_GRAFANA_PORT:-3000}/dashboards"
echo "Try:"
echo "  curl -s http://${TIERWISE_BIND:-127.0.0.1:8080}/v1/classify -H 'content-type: application/json' -d '{\"inputs\": \"Not bad, not good.\"}'"
