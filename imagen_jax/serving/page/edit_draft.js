// The edit of this tab that is not sent yet: kept by the browser, so that it survives a reload. Images are too large for
// sessionStorage, which says whose tab an entry is.

const DATABASE = "imagen";
const STORE = "edits";
const TAB_KEY = "imagen-tab";
const KEPT_MS = 7 * 24 * 3600 * 1000; // of tabs that were closed

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => { forgetOld(request.result); resolve(request.result); };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

function forgetOld(database) {
  const cursors = database.transaction(STORE, "readwrite").objectStore(STORE).openCursor();
  cursors.onsuccess = () => {
    const cursor = cursors.result;
    if (!cursor) return;
    if (!(Date.now() - cursor.value.saved < KEPT_MS)) cursor.delete();
    cursor.continue();
  };
}

function tabKey() {
  let key = sessionStorage.getItem(TAB_KEY);
  if (!key) {
    key = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("-");
    sessionStorage.setItem(TAB_KEY, key);
  }
  return key;
}

/** Returns what `action` asks of the store of drafts; undefined where the browser keeps nothing, as in private windows. */
async function ask(mode, action) {
  try {
    const store = (await open()).transaction(STORE, mode).objectStore(STORE);
    return await new Promise((resolve, reject) => {
      const request = action(store);
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } catch (error) {
    console.info("The edit is not kept:", error);
    return undefined;
  }
}

export const saveDraft = (draft) => ask("readwrite", (store) => store.put({ ...draft, saved: Date.now() }, tabKey()));
export const loadDraft = () => ask("readonly", (store) => store.get(tabKey()));
export const dropDraft = () => ask("readwrite", (store) => store.delete(tabKey()));
