#!/bin/sh
# Creates the databases lake, sqlmesh and prefect, each with an owner role of the same name. Safe to repeat.
# The postgres image runs this at its first start. After changing a password in .env:
#   docker compose up --detach postgres
#   docker compose exec postgres sh /docker-entrypoint-initdb.d/databases.sh
set -eu

# psql reads the password from the environment, so it is in no process list and no file.
database() {
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
        --set=name="$1" --set=variable="$2" <<'SQL'
\getenv password :variable
SELECT format('CREATE ROLE %I LOGIN', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

database lake LAKE_CATALOG_PASSWORD
database sqlmesh LAKE_STATE_PASSWORD
database prefect PREFECT_DATABASE_PASSWORD
