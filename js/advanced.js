/**
 * Advanced inputs of our nodes behind one button in the classic canvas, as Nodes 2.0 puts them behind one by itself. What
 * is folded away is sent and saved all the same. In both canvases an input stays in sight that has a link or is not as it
 * came: nobody has to look for what they, or somebody before them, changed.
 */

import { app } from "../../scripts/app.js";
import { spoken } from "./spoken.js";

const OURS = "ContextualInversion";
const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";
const BUTTON = "advanced"; // its name among a node's widgets

let always = false; // ComfyUI's setting, which the classic canvas does not heed

const classic = () => !window.LiteGraph?.vueNodesMode;

/** Calls `read` for a property from now on; what is set meanwhile is what `read` gets. */
function computed(owner, property, read) {
  let own = owner[property];
  const get = () => read(own);
  const set = (value) => (own = value);
  Object.defineProperty(owner, property, { get, set, configurable: true, enumerable: true });
}

const linked = (node, widget) => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);

/** Has an advanced widget out of sight in both canvases, where the node does not show those and nothing speaks for it. */
function fold(node, widget, button) {
  const asItCame = widget.value;
  let stays = false; // until folded again: nothing vanishes under the hand that sets it back
  const advanced = () => {
    if (node.showAdvanced) stays = false;
    else if (widget.value !== asItCame || linked(node, widget)) stays = true;
    return !stays;
  };
  computed(widget.options, "advanced", advanced); // Nodes 2.0 reads this
  const folded = () => advanced() && classic() && !always && !node.showAdvanced;
  computed(widget, "hidden", (own) => own || folded());
  // While a link is dragged the sockets of folded inputs are at the button.
  computed(widget, "y", (own) => (folded() ? button.y : own));
}

/** Shows or folds the advanced inputs of a node, which grows and shrinks by them, as one step of the undo history. */
function toggle(node) {
  const before = node.computeSize()[1];
  app.canvas?.emitBeforeChange?.();
  node.showAdvanced = !node.showAdvanced;
  const height = node.size[1] + node.computeSize()[1] - before;
  node.setSize([node.size[0], Math.max(height, node.computeSize()[1])]);
  app.canvas?.emitAfterChange?.();
  node.setDirtyCanvas(true, true);
}

/** The button; behind what is saved, since ComfyUI counts values by their place. */
function addButton(node) {
  const options = { serialize: false, canvasOnly: true };
  const button = node.addWidget("button", BUTTON, null, () => toggle(node), options);
  button.serialize = false;
  const label = () => (node.showAdvanced ? spoken("Hide advanced inputs") : spoken("Show advanced inputs"));
  computed(button, "label", label);
  computed(button, "hidden", (own) => own || always || !classic());
  node.widgets.splice(node.widgets.indexOf(button), 1);
  const last = node.widgets.findLastIndex((widget) => widget.serialize !== false);
  node.widgets.splice(last + 1, 0, button);
  return button;
}

function foldAdvanced(node) {
  const widgets = (node.widgets ?? []).filter(({ options }) => options?.advanced);
  if (widgets.length === 0) return;
  const [[width, height], before] = [[...node.size], node.computeSize()[1]];
  const button = addButton(node);
  for (const widget of widgets) fold(node, widget, button);
  node.setSize([width, Math.max(node.computeSize()[1], height + node.computeSize()[1] - before)]);
}

app.registerExtension({
  name: "contextual_inversion.advanced",
  init() {
    always = Boolean(app.extensionManager.setting.get(ALWAYS));
    app.ui.settings.addEventListener(`${ALWAYS}.change`, ({ detail }) => {
      always = Boolean(detail.value);
      app.canvas?.setDirty(true, true);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith(OURS)) foldAdvanced(node);
  },
});
