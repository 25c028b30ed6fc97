#!/bin/sh
# Creates the databases lake, sqlmesh and prefect, each with an owner role of the same name. Safe to repeat.
# The postgres image runs this at its first start. After changing a password in secrets/:
#   docker compose restart postgres
#   docker compose exec postgres sh /docker-entrypoint-initdb.d/databases.sh
set -eu
folder=${SECRETS_FOLDER:-/run/secrets}

# psql reads the password from its file, so it is in no process list and no environment.
database() {
    if [ ! -s "$folder/$2" ]; then
        echo "$folder/$2 is missing or empty. Run: deployments/secrets" >&2
        exit 1
    fi
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
        --set=name="$1" --set=file="$folder/$2" <<'SQL'
\set password `cat :'file'`
SELECT format('CREATE ROLE %I LOGIN', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

database lake lake_catalog_password
database sqlmesh lake_state_password
database prefect prefect_server_database_password
