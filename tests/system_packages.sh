#!/usr/bin/env bash
# What the browser and PDF tests need from the system. Where it cannot be installed, those tests are skipped and say so.
set -u
missing=()
command -v chromium >/dev/null && command -v chromedriver >/dev/null || missing+=(chromium chromium-driver)
command -v pdftotext >/dev/null || missing+=(poppler-utils)
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    echo "some tests will be skipped; to run them, install: ${missing[*]}" >&2
    exit 0
fi
echo "installing ${missing[*]}"
log=$(mktemp)
if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "could not be installed; some tests will be skipped" >&2
fi
rm -f "$log"
