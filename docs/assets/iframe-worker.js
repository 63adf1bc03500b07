// A site that is opened from a folder (file:) may not start web workers. The search then runs its
// worker's script in a hidden frame that answers the same messages.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super()
    this.onmessage = null
    const frame = document.createElement("iframe")
    frame.hidden = true
    document.body.appendChild(frame)
    const inside = frame.contentWindow
    inside.postMessage = (data) => {
      const event = new MessageEvent("message", { data })
      if (this.onmessage) this.onmessage(event)
      this.dispatchEvent(event)
    }
    const load = (address) =>
      new Promise((resolve, reject) => {
        const script = inside.document.createElement("script")
        script.src = new URL(address, document.baseURI).href
        script.onload = resolve
        script.onerror = reject
        inside.document.body.appendChild(script)
      })
    inside.importScripts = (...addresses) =>
      addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve())
    this.inside = inside
    this.ready = load(url)
  }

  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
  }

  terminate() {
    this.inside.frameElement.remove()
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker
  window.Worker = IFrameWorker
}
