// Calls to the pack's own routes. A refusal becomes an Error whose message is the sentence to show.
import { api } from "../../scripts/api.js";

export async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await api.fetchApi(`/comfyloop/${path}`, options);
  const answer = await response.json().catch(() => ({ error: `ComfyUI answered ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

export function imageUrl(image) {
  const query = new URLSearchParams({ filename: image.filename, subfolder: image.subfolder ?? "", type: image.type });
  return api.apiURL(`/view?${query}`);
}
