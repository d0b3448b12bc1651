// Copies the text of a table. From a file, some browsers have no clipboard: the text is selected then.
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected: copy it by a key";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
