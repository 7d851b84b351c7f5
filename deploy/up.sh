#!/usr/bin/env bash
# Say what is chosen, bring the containers up, wait until they are healthy, and say where to look.
# TIERWISE_DASHBOARDS=0 leaves Grafana out. TIERWISE_BUILD=0 takes the images as they are. TIERWISE_LINKS=simulated or none does without a kernel that can shape.
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() { echo "make up: $1; \`make serve\` runs the tiers without it" >&2; exit 2; }
command -v docker >/dev/null || refuse "Docker is not installed"
docker compose version >/dev/null 2>&1 || refuse "Docker has no Compose here (\`docker compose\`, a plugin of its own)"
# what the environment and .env say, as Compose itself reads them: it alone knows .env's quotes, comments and line ends
settings=$(docker compose --project-directory . -f - config --format json <<'MODEL'
services:
  up:
    image: none
    environment:
      files: ${COMPOSE_FILE-}
      separator: ${COMPOSE_PATH_SEPARATOR:-:}
      build: ${TIERWISE_BUILD:-1}
      links: ${TIERWISE_LINKS:-netem}
      bundle: ${TIERWISE_BUNDLE:-collaborative}
      dashboards: ${TIERWISE_DASHBOARDS:-1}
      bind: ${TIERWISE_BIND:-127.0.0.1:8080}
      prometheus: ${TIERWISE_PROMETHEUS_PORT:-9090}
      grafana: ${TIERWISE_GRAFANA_PORT:-3000}
MODEL
)
value() { sed -nE "s/^ *\"$1\": \"(.*)\",?\$/\1/p" <<<"$settings"; }
files=$(value files) bind=$(value bind) dashboards=$(value dashboards) links=$(value links)
[[ $bind == *:* ]] || bind=127.0.0.1:$bind
if docker info --format '{{json .Runtimes}}' | grep -q '"nvidia"'; then
  separator=$(value separator)
  if [ -z "$files" ]; then  # what Compose takes where nothing is named
    files=docker-compose.yml
    [ ! -e docker-compose.override.yml ] || files+=${separator}docker-compose.override.yml
  fi
  files+=${separator}deploy/compose.gpu.yml
  export COMPOSE_FILE=$files
  processor="GPU (Docker has an NVIDIA runtime: deploy/compose.gpu.yml is added)"
else
  processor="CPU (Docker has no NVIDIA runtime)"
fi
case $links in
  netem) shaped="netem (the kernel shapes them; TIERWISE_LINKS=simulated does without)" ;;
  simulated) shaped="simulated (in the tiers; the kernel shapes nothing)" ;;
  *) shaped="$links (as they are; nothing is shaped)" ;;
esac
echo "Bundle      $(value bundle)"
echo "Processor   $processor"
echo "Links       $shaped"
[ "$dashboards" = 0 ] && echo "Grafana     no (TIERWISE_DASHBOARDS=0)" || echo "Grafana     yes (TIERWISE_DASHBOARDS=0 leaves it out)"

[ "$(value build)" = 0 ] || docker compose build end edge cloud end-shaper
if [ "$links" = netem ]; then  # say it now: a tier without shape must not start
  docker run --rm --network none --cap-drop ALL --cap-add NET_ADMIN tierwise-shaper python -m services.shaper --check
fi
services=(end edge cloud prometheus)
[ "$dashboards" = 0 ] || services+=(grafana)
wait=--wait
[[ $files != *compose.quiet.yml* ]] || wait=  # without health checks Compose has nothing to wait for
docker compose up -d $wait --no-build "${services[@]}" || {
  docker compose ps --all --quiet | xargs docker inspect --format '{{.Name}} {{.State.Status}}, exit {{.State.ExitCode}}, restarts {{.RestartCount}}'
  docker compose logs --tail 5
  exit 1
}

echo
echo "Page        http://$bind/"
echo "API         http://$bind/docs"
echo "Prometheus  http://127.0.0.1:$(value prometheus)"
[ "$dashboards" = 0 ] || echo "Dashboards  http://127.0.0.1:$(value grafana)/dashboards"
echo "Try:"
echo "  curl -s http://$bind/v1/classify -H 'content-type: application/json' -d '{\"inputs\": \"Not bad, not good.\"}'"
