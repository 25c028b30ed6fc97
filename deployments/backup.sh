#!/bin/sh
# Dumps the three databases every night into BACKUP_FOLDER, and deletes old dumps. Now, once: backup.sh once
# Copy the bucket after the dumps, since the catalog must not know files that the copy lacks: the library's
# docs/operations.md.
set -eu

once() {
    umask 077
    if [ -n "${PGPASSWORD_FILE:-}" ]; then
        PGPASSWORD=$(cat "$PGPASSWORD_FILE")
        export PGPASSWORD
    fi
    moment=$(date -u +%Y-%m-%dT%H%M%S)
    # SQLMesh's state first: one that is older than the catalog needs no action after a restore.
    for name in sqlmesh lake prefect; do
        # Whole or not at all: a dump has its name only when it is complete.
        pg_dump --no-password --format=custom --file="$BACKUP_FOLDER/.$name" "$name"
        mv "$BACKUP_FOLDER/.$name" "$BACKUP_FOLDER/$name-$moment.dump"
    done
    find "$BACKUP_FOLDER" -name '*.dump' -mtime "+$BACKUP_DAYS" -exec rm {} +
    echo "Dumped sqlmesh, lake and prefect at $moment."
}

if [ "${1:-}" = once ]; then
    once
    exit
fi
# The first dump comes at once, and so does one that was missed.
[ -n "$(find "$BACKUP_FOLDER" -name 'lake-*.dump' -mmin -1440)" ] || sh "$0" once
while :; do
    sleep $((86400 - ($(date -u +%s) - BACKUP_HOUR * 3600) % 86400))
    sh "$0" once || echo "The backup failed." >&2
done
