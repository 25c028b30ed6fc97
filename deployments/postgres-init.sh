#!/bin/sh
# Makes the databases lake, sqlmesh and prefect, each with a role of the same name that owns it. Safe to repeat.
# The postgres image runs it at its first start. After a password has changed in .env:
#   docker compose up --detach postgres
#   docker compose exec postgres sh /docker-entrypoint-initdb.d/databases.sh
set -eu

# psql reads the password from the environment: no process list and no file shows it.
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
