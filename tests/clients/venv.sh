# To be sourced: puts the Python that the tests use before others, with all that they need beside it. What is installed is
# installed once, and again when what is wanted has changed.
venv=${XDG_CACHE_HOME:-$HOME/.cache}/kontor/clients-venv
wanted=$(dirname "${BASH_SOURCE[0]}")/python/requirements.txt
if ! cmp -s "$wanted" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
    cp "$wanted" "$venv/requirements.txt"
fi
export PATH=$venv/bin:$PATH
