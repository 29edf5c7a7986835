/* The _remote module: chat and image services over HTTP. A thin layer: ipvg/chat.py and ipvg/images.py are what users see.
 *
 *     body = _remote.body("gpt-4o", (("user", ("Describe.", ("image/jpeg", jpeg))),), {"max_tokens": 5000})
 *     client, limits = _remote.Client(), (10, 300, 120, 600, 5, 0.5, 1 << 22)
 *     said = client.chat("https://api.openai.com/v1/chat/completions", key, False, limits, None, body)
 *     said["error"] is None and said["content"]
 *     form = (("model", "gpt-image-1"), ("prompt", "..."), ("image", "image.png", "image/png", png))
 *     said = client.edit("https://api.openai.com/v1/images/edits", key, False, limits, None, form)
 *     said["error"] is None and said["images"][0]          # (bytes or None, address or None, rewritten prompt or None)
 *
 * What goes wrong on the way comes back in the dict, since a caller wants status and request id beside the text; only
 * wrong arguments, missing memory and cancelling are raised. The GIL is released for the whole exchange. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "../remote/chat.h"
#include "../remote/images.h"
#include "../remote/reply.h"
#include "../remote/retry.h"
#include "../remote/url.h"

typedef struct module_state {
    PyObject *cancelled; /* ipvg._core.Cancelled */
} module_state;

/* ---- body ---- */

/* UTF-8 of a str without NUL, which a C string cannot hold; NULL with an exception. Lives as long as the str. */
static const char *text_of(PyObject *value, const char *what)
{
    Py_ssize_t size;
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s: expected str, got %.80s", what, Py_TYPE(value)->tp_name);
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (!text) {
        if (PyErr_ExceptionMatches(PyExc_UnicodeError))
            PyErr_Format(PyExc_ValueError, "%s: holds a lone surrogate, which cannot be sent", what);
        return NULL;
    }
    if (strlen(text) == (size_t)size) return text;
    PyErr_Format(PyExc_ValueError, "%s: holds a NUL character, which cannot be sent", what);
    return NULL;
}

static int read_part(ipvg_chat_part *part, PyObject *value)
{
    PyObject *mime, *data;
    if (PyUnicode_Check(value)) return (part->text = text_of(value, "message")) != NULL;
    if (!PyTuple_Check(value) || !PyArg_ParseTuple(value, "UO!:a picture", &mime, &PyBytes_Type, &data)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "message: expected str or (MIME type, bytes)");
        return 0;
    }
    part->data = PyBytes_AS_STRING(data);
    part->size = (size_t)PyBytes_GET_SIZE(data);
    return (part->mime = text_of(mime, "MIME type")) != NULL;
}

/* The parts are of `value`, a (role, tuple of parts); *parts is for PyMem_Free. */
static int read_message(ipvg_chat_message *message, ipvg_chat_part **parts, PyObject *value)
{
    PyObject *role, *list;
    if (!PyTuple_Check(value) || !PyArg_ParseTuple(value, "OO!:a message", &role, &PyTuple_Type, &list)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "message: expected (role, parts)");
        return 0;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(list);
    if (count == 0) return PyErr_SetString(PyExc_ValueError, "message: has no parts"), 0;
    *parts = PyMem_Calloc((size_t)count, sizeof **parts);
    if (!*parts) return PyErr_NoMemory(), 0;
    *message = (ipvg_chat_message){.role = text_of(role, "role"), .parts = *parts, .count = (size_t)count};
    if (!message->role) return 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!read_part(&(*parts)[i], PyTuple_GET_ITEM(list, i))) return 0;
    return 1;
}

static int read_option(ipvg_chat_option *option, PyObject *name, PyObject *value)
{
    if (!(option->name = text_of(name, "option"))) return 0;
    if (PyBool_Check(value)) {
        option->kind = IPVG_CHAT_BOOL;
        option->number = value == Py_True;
    } else if (PyUnicode_Check(value)) {
        option->kind = IPVG_CHAT_TEXT;
        return (option->text = text_of(value, option->name)) != NULL;
    } else if (PyLong_Check(value) || PyFloat_Check(value)) {
        option->kind = IPVG_CHAT_NUMBER;
        option->number = PyFloat_AsDouble(value);
        if (PyErr_Occurred()) return 0;
        if (!(option->number >= -9007199254740992.0 && option->number <= 9007199254740992.0)) {
            PyErr_Format(PyExc_ValueError, "%s: expected a number within +-2**53", option->name);
            return 0;
        }
    } else {
        PyErr_Format(PyExc_TypeError, "%s: expected a number, str or bool", option->name);
        return 0;
    }
    return 1;
}

static PyObject *body(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *model_object, *list, *dict, *result = NULL, *name, *value;
    ipvg_chat_message *messages = NULL;
    ipvg_chat_part **parts = NULL;
    ipvg_chat_option *options = NULL;
    char *text = NULL;
    Py_ssize_t position = 0, at = 0;
    if (!PyArg_ParseTuple(args, "OO!O!", &model_object, &PyTuple_Type, &list, &PyDict_Type, &dict)) return NULL;
    const char *model = text_of(model_object, "model");
    Py_ssize_t count = PyTuple_GET_SIZE(list), option_count = PyDict_Size(dict);
    if (!model) return NULL;
    messages = PyMem_Calloc((size_t)count + 1, sizeof *messages);
    parts = PyMem_Calloc((size_t)count + 1, sizeof *parts);
    options = PyMem_Calloc((size_t)option_count + 1, sizeof *options);
    if (!messages || !parts || !options) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!read_message(&messages[i], &parts[i], PyTuple_GET_ITEM(list, i))) goto done;
    while (PyDict_Next(dict, &position, &name, &value))
        if (!read_option(&options[at++], name, value)) goto done;
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    if (ipvg_chat_write(&ctx, &text, model, messages, (size_t)count, options, (size_t)option_count) == IPVG_OK)
        result = PyBytes_FromString(text);
    else
        PyErr_SetString(PyExc_MemoryError, ctx.error);
done:
    for (Py_ssize_t i = 0; parts && i < count; i++) PyMem_Free(parts[i]);
    PyMem_Free(parts);
    PyMem_Free(messages);
    PyMem_Free(options);
    free(text);
    return result;
}

/* ---- Client ---- */

typedef struct client {
    PyObject_HEAD
    ipvg_context ctx;
    ipvg_http *http;
    PyThreadState *thread; /* of the running call */
    int busy;              /* a call runs without the GIL; guarded by the GIL */
} client;

/* As in device.c: signals are Python's to handle, and only the main thread has any. */
static int poll_signals(void *user)
{
    client *c = user;
    PyEval_RestoreThread(c->thread);
    int raised = PyErr_CheckSignals() != 0;
    c->thread = PyEval_SaveThread();
    return raised;
}

static PyObject *client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "", names)) return NULL;
    client *c = (client *)type->tp_alloc(type, 0);
    if (!c) return NULL;
    ipvg_context_init(&c->ctx, 1);
    if (ipvg_http_open(&c->ctx, &c->http) != IPVG_OK) {
        PyErr_SetString(PyExc_MemoryError, c->ctx.error);
        Py_DECREF(c);
        return NULL;
    }
    return (PyObject *)c;
}

static PyObject *client_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    client *c = (client *)self;
    if (c->busy) return PyErr_Format(PyExc_RuntimeError, "another thread is using this client");
    ipvg_http *http = c->http;
    c->http = NULL;
    Py_BEGIN_ALLOW_THREADS ipvg_http_close(&http);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static void client_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ipvg_http_close(&((client *)self)->http);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *client_cancel(PyObject *self, PyObject *unused)
{
    (void)unused;
    atomic_store(&((client *)self)->ctx.cancel, 1);
    Py_RETURN_NONE;
}

static PyObject *client_ready(PyObject *self, PyObject *unused)
{
    (void)unused;
    atomic_store(&((client *)self)->ctx.cancel, 0);
    Py_RETURN_NONE;
}

/* What an exchange came to. */
typedef struct outcome {
    ipvg_status status;
    ipvg_http_answer http;
    ipvg_chat_answer chat;
    ipvg_images_answer images;
    int attempts;
    char error[sizeof((ipvg_context *)0)->error];
} outcome;

/* What is asked for. */
typedef struct question {
    enum { CHAT, EDIT, FETCH } kind;
    ipvg_http_request request;
    ipvg_retry policy;
    const char *service; /* of FETCH: who named the address */
    int any_http;
} question;

static ipvg_status read_reply(ipvg_context *ctx, outcome *o, const question *q)
{
    const char *type = o->http.type;
    if (q->kind == CHAT) return ipvg_chat_read(ctx, &o->chat, o->http.body, o->http.size);
    if (q->kind == EDIT) return ipvg_images_read(ctx, &o->images, o->http.body, o->http.size);
    if (type[0] && strncasecmp(type, "image/", 6) != 0 && !strcasestr(type, "octet-stream"))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "the picture came as %s", type);
    return ipvg_images_check(ctx, "the picture", o->http.body, o->http.size);
}

/* Without the GIL. */
static void exchange(client *c, outcome *o, const question *q)
{
    o->status = q->kind == FETCH ? ipvg_url_check(&c->ctx, q->request.url, q->service, q->any_http) : IPVG_OK;
    if (o->status == IPVG_OK)
        o->status = ipvg_retry_send(&c->ctx, c->http, &o->http, &q->request, &q->policy, &o->attempts);
    if (o->status != IPVG_OK) {
        snprintf(o->error, sizeof o->error, "%s", c->ctx.error);
    } else if (o->http.status >= 200 && o->http.status < 300) {
        o->status = read_reply(&c->ctx, o, q);
        bool typed = o->status != IPVG_E_FORMAT || q->kind == FETCH || strstr(o->http.type, "json");
        if (o->status != IPVG_OK)
            snprintf(o->error, sizeof o->error, "%s%s%s%s", c->ctx.error, typed ? "" : " (it came as ",
                     typed ? "" : (o->http.type[0] ? o->http.type : "no content type at all"),
                     typed ? "" : ": is the base URL right?)");
    } else if (o->http.status >= 300 && o->http.status < 400) {
        o->status = IPVG_E_BACKEND;
        snprintf(o->error, sizeof o->error, "a redirect, which is not followed: it could hand the key to another host");
    } else {
        o->status = IPVG_E_BACKEND;
        ipvg_reply_explain(o->error, sizeof o->error, o->http.body, o->http.size);
    }
    /* The body was blanked as it came; a key written with \u escapes shows only now. */
    const char *key = q->request.key;
    char *said[] = {o->error, o->chat.content, o->chat.refusal, o->chat.model, o->chat.finish_reason};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (said[i]) ipvg_key_blank(said[i], strlen(said[i]), key);
    for (size_t i = 0; i < o->images.count; i++) {
        ipvg_images_item *item = &o->images.items[i];
        if (item->text) ipvg_key_blank(item->text, strlen(item->text), key);
        if (item->url) ipvg_key_blank(item->url, strlen(item->url), key);
    }
}

static PyObject *list_of_images(const ipvg_images_answer *images)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < images->count; i++) {
        const ipvg_images_item *item = &images->items[i];
        PyObject *one = Py_BuildValue("(y#zz)", (char *)item->data, (Py_ssize_t)item->size, item->url, item->text);
        if (!one || PyList_Append(list, one) < 0) Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

/* The dict of an outcome: what every kind has, and what this one said. */
static PyObject *said(const outcome *o, const question *q)
{
    PyObject *error = o->status == IPVG_OK ? Py_NewRef(Py_None)
                                           : PyUnicode_DecodeUTF8(o->error, (Py_ssize_t)strlen(o->error), "replace");
    PyObject *fault = o->http.fault || ipvg_retry_status(o->http.status) ? Py_True : Py_False;
    PyObject *dict = error ? Py_BuildValue("{s:N,s:l,s:s,s:i,s:O}", "error", error, "status", o->http.status,
                                           "request_id", o->http.request_id, "attempts", o->attempts, "fault", fault)
                           : NULL;
    PyObject *more = NULL;
    if (!dict) return NULL;
    if (q->kind == CHAT)
        more =
            Py_BuildValue("{s:z,s:z,s:s,s:s,s:L,s:L}", "content", o->chat.content, "refusal", o->chat.refusal,
                          "finish_reason", o->chat.finish_reason, "model", o->chat.model, "prompt_tokens",
                          (long long)o->chat.prompt_tokens, "completion_tokens", (long long)o->chat.completion_tokens);
    else if (q->kind == EDIT)
        more = Py_BuildValue("{s:N,s:L,s:L}", "images", list_of_images(&o->images), "input_tokens",
                             (long long)o->images.input_tokens, "output_tokens", (long long)o->images.output_tokens);
    else
        more = Py_BuildValue("{s:y#}", "data", o->status == IPVG_OK ? o->http.body : NULL, (Py_ssize_t)o->http.size);
    if (!more || PyDict_Update(dict, more) < 0) Py_CLEAR(dict);
    Py_XDECREF(more);
    return dict;
}

static PyObject *ask(client *c, const question *q)
{
    outcome o = {0};
    PyObject *result = NULL;
    if (c->busy || !c->http)
        return PyErr_Format(PyExc_RuntimeError,
                            c->busy ? "another thread is using this client" : "this client is closed");
    c->busy = 1;
    c->ctx.poll = poll_signals;
    c->ctx.poll_user = c;
    c->thread = PyEval_SaveThread();
    exchange(c, &o, q);
    PyEval_RestoreThread(c->thread);
    c->ctx.poll = NULL;
    c->busy = 0;
    if (o.status == IPVG_E_CANCELLED) {
        module_state *state = PyType_GetModuleState(Py_TYPE(c));
        if (!PyErr_Occurred()) PyErr_SetString(state->cancelled, o.error);
    } else if (o.status == IPVG_E_MEMORY || (o.status == IPVG_E_ARGUMENT && q->kind != FETCH)) {
        PyErr_SetString(o.status == IPVG_E_MEMORY ? PyExc_MemoryError : PyExc_ValueError, o.error);
    } else { /* a wrong address that the service gave is not the caller's mistake */
        result = said(&o, q);
    }
    ipvg_http_answer_free(&o.http);
    ipvg_chat_answer_free(&o.chat);
    ipvg_images_answer_free(&o.images);
    return result;
}

/* For PyArg_ParseTuple: (connect, total, silence, deadline, attempts, first_wait, max_bytes) into a question. */
static int read_limits(PyObject *value, void *out)
{
    question *q = out;
    Py_ssize_t max_bytes;
    q->policy.max_wait = 30;
    if (!PyTuple_Check(value)) return PyErr_SetString(PyExc_TypeError, "limits: expected a tuple"), 0;
    if (!PyArg_ParseTuple(value, "ddddidn:limits", &q->request.connect_timeout, &q->request.timeout,
                          &q->request.silence_timeout, &q->policy.deadline, &q->policy.attempts, &q->policy.first_wait,
                          &max_bytes))
        return 0;
    q->request.max_bytes = (size_t)max_bytes;
    return 1;
}

static PyObject *client_chat(PyObject *self, PyObject *args)
{
    question q = {.kind = CHAT};
    int plain;
    const char *body;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "szpO&zy#:chat", &q.request.url, &q.request.key, &plain, read_limits, &q,
                          &q.request.ca_file, &body, &size))
        return NULL;
    q.request.plain_key = plain;
    q.request.body = body;
    q.request.size = (size_t)size;
    return ask((client *)self, &q);
}

/* (name, text) or (name, filename, type, bytes) */
static int read_field(ipvg_http_field *field, PyObject *value)
{
    PyObject *name, *text, *filename, *type, *data;
    if (PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 2) {
        if (!PyArg_ParseTuple(value, "OO:a field", &name, &text) || !(field->name = text_of(name, "field"))) return 0;
        if (!(field->data = text_of(text, field->name))) return 0;
        field->size = strlen(field->data);
        return 1;
    }
    if (!PyTuple_Check(value) ||
        !PyArg_ParseTuple(value, "OOOO!:a file", &name, &filename, &type, &PyBytes_Type, &data)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "field: expected a tuple");
        return 0;
    }
    field->data = PyBytes_AS_STRING(data);
    field->size = (size_t)PyBytes_GET_SIZE(data);
    return (field->name = text_of(name, "field")) && (field->filename = text_of(filename, "file name")) &&
           (field->type = text_of(type, "MIME type"));
}

static PyObject *client_edit(PyObject *self, PyObject *args)
{
    question q = {.kind = EDIT};
    int plain;
    PyObject *form, *result = NULL;
    if (!PyArg_ParseTuple(args, "szpO&zO!:edit", &q.request.url, &q.request.key, &plain, read_limits, &q,
                          &q.request.ca_file, &PyTuple_Type, &form))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(form);
    ipvg_http_field *fields = PyMem_Calloc((size_t)count + 1, sizeof *fields);
    if (!fields) return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++)
        if (!read_field(&fields[i], PyTuple_GET_ITEM(form, i))) goto done;
    q.request.plain_key = plain;
    q.request.fields = fields;
    q.request.field_count = (size_t)count;
    result = ask((client *)self, &q);
done:
    PyMem_Free(fields);
    return result;
}

static PyObject *client_fetch(PyObject *self, PyObject *args)
{
    question q = {.kind = FETCH};
    if (!PyArg_ParseTuple(args, "sspO&z:fetch", &q.request.url, &q.service, &q.any_http, read_limits, &q,
                          &q.request.ca_file))
        return NULL;
    return ask((client *)self, &q);
}

static PyMethodDef client_methods[] = {
    {"chat", client_chat, METH_VARARGS,
     "chat(url, key, plain_key, limits, ca_file, body) -> dict\n\nPosts a body and reads the answer. limits: (connect, "
     "total, silence, deadline, attempts, first_wait, max_bytes), see csrc/remote/http.h and retry.h."},
    {"edit", client_edit, METH_VARARGS,
     "edit(url, key, plain_key, limits, ca_file, form) -> dict\n\nPosts a form, a tuple of (name, text) and (name, "
     "file name, MIME type, bytes), and reads the answer of an images endpoint."},
    {"fetch", client_fetch, METH_VARARGS,
     "fetch(url, service, any_http, limits, ca_file) -> dict\n\nGets a picture, without a key, from an address that a "
     "reply of `service` names."},
    {"cancel", client_cancel, METH_NOARGS,
     "cancel()\n\nEnds the running call, or the next one, with Cancelled; from any thread."},
    {"ready", client_ready, METH_NOARGS, "ready()\n\nTakes back a cancel() that no call has seen."},
    {"close", client_close, METH_NOARGS, "close()"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot client_slots[] = {{Py_tp_doc, "Client()\n\nConnections that stay open; one call at a time."},
                                     {Py_tp_new, client_new},
                                     {Py_tp_dealloc, client_dealloc},
                                     {Py_tp_methods, client_methods},
                                     {0, NULL}};
static PyType_Spec client_spec = {"ipvg._remote.Client", sizeof(client), 0, Py_TPFLAGS_DEFAULT, client_slots};

/* ---- module ---- */

static int module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    PyObject *core = PyImport_ImportModule("ipvg._core");
    if (!core) return -1;
    state->cancelled = PyObject_GetAttrString(core, "Cancelled");
    Py_DECREF(core);
    PyObject *type = state->cancelled ? PyType_FromModuleAndSpec(module, &client_spec, NULL) : NULL;
    if (!type) return -1;
    int err = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return err;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(((module_state *)PyModule_GetState(module))->cancelled);
    return 0;
}

static int module_clear(PyObject *module)
{
    Py_CLEAR(((module_state *)PyModule_GetState(module))->cancelled);
    return 0;
}

static PyMethodDef functions[] = {
    {"body", body, METH_VARARGS,
     "body(model, messages, options) -> bytes\n\nThe JSON of a request. messages: a tuple of (role, parts), parts a "
     "tuple of str or (MIME type, bytes)."},
    {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                        .m_name = "ipvg._remote",
                                        .m_doc = "Chat and image services through libcurl and cJSON.",
                                        .m_size = sizeof(module_state),
                                        .m_methods = functions,
                                        .m_slots = module_slots,
                                        .m_traverse = module_traverse,
                                        .m_clear = module_clear};

PyMODINIT_FUNC PyInit__remote(void) { return PyModuleDef_Init(&definition); }
