// What `make check` asks of the pages' scripts where eslint is installed (`npm install --global eslint`).
const names = (list) => Object.fromEntries(list.split(" ").map((name) => [name, "readonly"]));

const browser = names(
  "window document navigator location history fetch console crypto localStorage sessionStorage performance " +
    "setTimeout clearTimeout setInterval clearInterval requestAnimationFrame queueMicrotask structuredClone URL " +
    "URLSearchParams FormData Blob File FileReader Image Event CustomEvent EventSource WebSocket AbortController " +
    "MutationObserver ResizeObserver IntersectionObserver TextEncoder TextDecoder Intl HTMLElement Element Node " +
    "getComputedStyle matchMedia alert confirm prompt addEventListener uPlot",  // and one bundled library
);

export default [
  { ignores: ["**/*.min.js", "**/node_modules/**", ".venv/**"] },
  {
    files: ["comfyui/web/**/*.js", "src/comfyloop/web/static/**/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: browser },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "no-unused-vars": ["error", { ignoreRestSiblings: true }],  // `{ images, ...rest }` leaves images out
      ...Object.fromEntries(
        (
          "no-undef no-redeclare no-const-assign no-dupe-keys no-dupe-args no-dupe-else-if " +
          "no-duplicate-case no-unreachable no-self-assign no-self-compare no-cond-assign no-constant-condition " +
          "no-sparse-arrays no-unsafe-finally no-unsafe-negation no-unsafe-optional-chaining use-isnan valid-typeof " +
          "no-async-promise-executor no-template-curly-in-string eqeqeq no-var " +
          "prefer-const no-eval no-implied-eval no-new-func no-loss-of-precision no-empty no-fallthrough " +
          "no-inner-declarations no-import-assign no-func-assign no-class-assign no-this-before-super"
        )
          .split(" ")
          .map((rule) => [rule, "error"]),
      ),
    },
  },
];
