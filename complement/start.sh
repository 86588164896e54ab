#!/bin/bash
# Starts the node in the suite's container, as often as the container is started, with the name that the suite gives and
# a certificate of the suite's authority.
set -euo pipefail
: "${SERVER_NAME:?the suite gives each server its name in SERVER_NAME}"
authority=/complement/ca
own=/data/complement
mkdir -p "$own"

[ -f "$own/key.pem" ] || openssl ecparam -name prime256v1 -genkey -noout -out "$own/key.pem"
# The container may have been made from another one's image: the name may be new, so the certificate is made anew.
openssl req -new -key "$own/key.pem" -subj "/CN=$SERVER_NAME" -out "$own/request.pem"
openssl x509 -req -in "$own/request.pem" -days 30 -sha256 -out "$own/certificate.pem" \
    -CA "$authority/ca.crt" -CAkey "$authority/ca.key" -set_serial "0x$(openssl rand -hex 8)" \
    -extfile <(printf 'subjectAltName=DNS:%s' "$SERVER_NAME") 2>/dev/null

export KONTOR_SERVER__NAME=$SERVER_NAME
# The suite's tests of the user directory expect that strangers are not found.
export KONTOR_USER_DIRECTORY__SEARCH_ALL_USERS=false
# run.sh mounts /logs to keep the log after the container is gone.
if [ -d /logs ]; then
    exec >>"/logs/$SERVER_NAME-$(hostname).log" 2>&1
fi
exec kontor serve
