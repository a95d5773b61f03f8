// What a data set was found to be, before any of it is taken; change what was guessed, then take it.
import { call, moved, tell } from "./desk.js";

document.addEventListener("alpine:init", () => {
  window.Alpine.data("dataset", () => ({
    looking: true,
    looked: false,
    busy: false,
    problem: "",
    request: { format: "", question: "", skip_bad: false, map: {} },
    shown: { format: "", what: "", mapping: {}, columns: [], left_out: [], samples: [], targets: {} },
    get targets() { return Object.keys(this.shown.targets); },
    get mapped() { return this.shown.columns.length > 0 && this.targets.length > 0; },
    get leftOut() { return this.shown.left_out.join(", "); },
    address(action) { return this.$root.dataset.address.replace("ACTION", action); },
    init() { this.look(); },
    async look() {
      this.looking = true;
      try {
        this.shown = await call("POST", this.address("preview"), { ...this.request, rows: 5 });
        this.looked = true;
        this.problem = "";
      } catch (error) {
        this.problem = error.message;
      } finally {
        this.looking = false;
      }
    },
    map(event, target) {
      const map = { ...this.shown.mapping, ...this.request.map, [target]: event.target.value };
      this.request.map = Object.fromEntries(Object.entries(map).filter(([, column]) => column));
      this.look();
    },
    async take() {
      this.busy = true;
      try {
        await call("POST", this.address("import"), this.request);
        location.reload();
      } catch (error) {
        tell(error.message, true);
        this.busy = false;
        moved();
      }
    },
  }));
});
