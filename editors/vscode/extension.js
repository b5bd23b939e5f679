// Starts `archc lsp` and lets the editor talk to it.

const { workspace } = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

function activate() {
  const command = workspace.getConfiguration("archc").get("command");
  const server = { command, args: ["lsp"] };
  const options = { documentSelector: [{ language: "arch" }] };
  client = new LanguageClient("archc", "archc", server, options);
  return client.start();
}

function deactivate() {
  return client && client.stop();
}

module.exports = { activate, deactivate };
