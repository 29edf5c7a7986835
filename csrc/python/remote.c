/* The _remote module: chat services over HTTP. A thin layer: ipvg/chat.py and ipvg/enhance.py are what users see.
 *
 *     body = _remote.body("gpt-4o", [("user", ["Describe.", ("image/jpeg", jpeg)])], {"max_tokens": 5000})
 *     client = _remote.Client()
 *     said = client.post("https://api.openai.com/v1/chat/completions", key, body, 10, 300, 120, 1 << 22, None, 4, 600, 0.5)
 *     said["error"] is None and said["content"]
 *
 * What goes wrong on the way comes back in the dict, since a caller wants status and request id beside the text; only
 * wrong arguments, missing memory and cancelling are raised. The GIL is released for the whole exchange. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "../remote/chat.h"
#include "../remote/retry.h"

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
        PyErr_NoMemory();
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
    client *c = (client *)self;
    if (c->busy) atomic_store(&c->ctx.cancel, 1);
    Py_RETURN_NONE;
}

/* What a post came to. */
typedef struct outcome {
    ipvg_status status;
    ipvg_http_answer http;
    ipvg_chat_answer chat;
    int attempts;
    char error[sizeof((ipvg_context *)0)->error];
} outcome;

/* Without the GIL. */
static void exchange(client *c, outcome *o, const ipvg_http_request *request, const ipvg_retry *policy)
{
    o->status = ipvg_retry_post(&c->ctx, c->http, &o->http, request, policy, &o->attempts);
    if (o->status != IPVG_OK) {
        snprintf(o->error, sizeof o->error, "%s", c->ctx.error);
    } else if (o->http.status >= 200 && o->http.status < 300) {
        o->status = ipvg_chat_read(&c->ctx, &o->chat, o->http.body, o->http.size);
        bool typed = o->status != IPVG_E_FORMAT || strstr(o->http.type, "json");
        if (o->status != IPVG_OK)
            snprintf(o->error, sizeof o->error, "%s%s%s%s", c->ctx.error, typed ? "" : " (it came as ",
                     typed ? "" : (o->http.type[0] ? o->http.type : "no content type at all"),
                     typed ? "" : ": is the base URL right?)");
    } else if (o->http.status >= 300 && o->http.status < 400) {
        o->status = IPVG_E_BACKEND;
        snprintf(o->error, sizeof o->error, "a redirect, which is not followed: it could hand the key to another host");
    } else {
        o->status = IPVG_E_BACKEND;
        ipvg_chat_explain(o->error, sizeof o->error, o->http.body, o->http.size);
    }
    /* The body was blanked as it came; a key written with \u escapes shows only now. */
    char *said[] = {o->error, o->chat.content, o->chat.refusal, o->chat.model, o->chat.finish_reason};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (said[i]) ipvg_key_blank(said[i], strlen(said[i]), request->key);
}

static PyObject *client_post(PyObject *self, PyObject *args)
{
    client *c = (client *)self;
    ipvg_http_request request = {0};
    ipvg_retry policy = {.max_wait = 30};
    Py_buffer data;
    Py_ssize_t max_bytes;
    outcome o = {0};
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "szy*dddnzidd", &request.url, &request.key, &data, &request.connect_timeout,
                          &request.timeout, &request.silence_timeout, &max_bytes, &request.ca_file, &policy.attempts,
                          &policy.deadline, &policy.first_wait))
        return NULL;
    request.body = data.buf;
    request.size = (size_t)data.len;
    request.max_bytes = (size_t)max_bytes;
    if (c->busy || !c->http) {
        PyErr_SetString(PyExc_RuntimeError, c->busy ? "another thread is using this client" : "this client is closed");
        goto done;
    }
    c->busy = 1;
    c->ctx.poll = poll_signals;
    c->ctx.poll_user = c;
    c->thread = PyEval_SaveThread();
    exchange(c, &o, &request, &policy);
    PyEval_RestoreThread(c->thread);
    c->ctx.poll = NULL;
    c->busy = 0;
    atomic_store(&c->ctx.cancel, 0);
    if (o.status == IPVG_E_CANCELLED) {
        module_state *state = PyType_GetModuleState(Py_TYPE(self));
        if (!PyErr_Occurred()) PyErr_SetString(state->cancelled, o.error);
    } else if (o.status == IPVG_E_ARGUMENT || o.status == IPVG_E_MEMORY) {
        PyErr_SetString(o.status == IPVG_E_MEMORY ? PyExc_MemoryError : PyExc_ValueError, o.error);
    } else {
        PyObject *error = o.status == IPVG_OK ? Py_NewRef(Py_None)
                                              : PyUnicode_DecodeUTF8(o.error, (Py_ssize_t)strlen(o.error), "replace");
        if (error)
            result = Py_BuildValue("{s:N,s:l,s:s,s:i,s:O,s:z,s:z,s:s,s:s,s:L,s:L}", "error", error, "status",
                                   o.http.status, "request_id", o.http.request_id, "attempts", o.attempts, "fault",
                                   o.http.fault || ipvg_retry_status(o.http.status) ? Py_True : Py_False, "content",
                                   o.chat.content, "refusal", o.chat.refusal, "finish_reason", o.chat.finish_reason,
                                   "model", o.chat.model, "prompt_tokens", (long long)o.chat.prompt_tokens,
                                   "completion_tokens", (long long)o.chat.completion_tokens);
    }
done:
    PyBuffer_Release(&data);
    ipvg_http_answer_free(&o.http);
    ipvg_chat_answer_free(&o.chat);
    return result;
}

static PyMethodDef client_methods[] = {
    {"post", client_post, METH_VARARGS,
     "post(url, key, body, connect_timeout, timeout, silence_timeout, max_bytes, ca_file, attempts, deadline, "
     "first_wait) -> dict\n\nSends a body and reads the answer; seconds and bytes. See csrc/remote/http.h and "
     "retry.h."},
    {"cancel", client_cancel, METH_NOARGS, "cancel()\n\nEnds the running post, from any thread, with Cancelled."},
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

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,          .m_name = "ipvg._remote", .m_doc = "Chat services through libcurl and cJSON.",
    .m_size = sizeof(module_state), .m_methods = functions,   .m_slots = module_slots,
    .m_traverse = module_traverse,  .m_clear = module_clear};

PyMODINIT_FUNC PyInit__remote(void) { return PyModuleDef_Init(&definition); }
