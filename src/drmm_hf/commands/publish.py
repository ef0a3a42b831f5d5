"""`drmm publish`: show what a published checkpoint would hold, and publish it with `--push`."""

import argparse

from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from ..hub import UploadPlan, plan_upload, publish
from ..hub.card import CARD


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Publish a checkpoint on the Hugging Face Hub. Without --push nothing is sent: the command shows "
        "what would be. The token is the one of `hf auth login` or HF_TOKEN.",
    )
    parser.add_argument("model", help="checkpoint folder with a README.md (model card)")
    parser.add_argument("repo_id", help="user/name or organization/name")
    parser.add_argument("--push", action="store_true", help="create or update the repository")
    parser.add_argument("--with-code", action="store_true", help="add the model's code, for trust_remote_code=True")
    parser.add_argument("--revision", help="branch to publish on, created if there is none (default: main)")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request in place of a commit")
    parser.add_argument("--message", default="Upload D-RMM detector", help="title of the commit")
    return parser


def run(arguments: argparse.Namespace) -> None:
    repo_id = arguments.repo_id
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"{repo_id}: give the repository as user/name or organization/name")
    plan = plan_upload(arguments.model, arguments.with_code)
    print(f"{arguments.model} -> {repo_id}")
    _show(plan)
    if not arguments.push:
        print("Dry run: nothing was sent. Publish it with --push.")
        return
    commit = publish(
        plan,
        repo_id,
        revision=arguments.revision,
        private=arguments.private,
        create_pr=arguments.create_pr,
        message=arguments.message,
    )
    if commit.pr_url:
        print(f"pull request {commit.pr_url}")
    print(f"published {commit.commit_url}")
    print(f'load it with revision="{commit.oid}" to get exactly this')


def _show(plan: UploadPlan) -> None:
    sizes = {name: plan.size(name) for name in plan.files}
    for name, size in [*sizes.items(), (f"in {len(sizes)} files", sum(sizes.values()))]:
        print(f"  {tqdm.format_sizeof(size, 'B', 1000):>8}  {name}")
    if plan.left_out:
        print(f"left out: {', '.join(plan.left_out)}")
    if not any(name.endswith(".py") for name in plan.files):
        print("without the model's code: users need this package installed (see --with-code)")
    card = plan.read(CARD).decode()
    print("\n".join(["model card:", *(f"  | {line}".rstrip() for line in card.splitlines())]))
