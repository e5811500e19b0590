// CUDA C++ to a shared object, by g++: the source is preprocessed, what g++ does not know is written otherwise, and
// kernel.h defines the rest.
#include <dlfcn.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <sstream>
#include <vector>

#include "emulated.h"

namespace {

// As nvcc contracts products and sums. Accesses that a GPU refuses for their alignment end the program.
const char* FLAGS =
    "-std=c++17 -O2 -march=native -ffp-contract=fast -fno-strict-aliasing -fno-math-errno -w -fPIC -shared "
    "-fsanitize=alignment -fsanitize-undefined-trap-on-error";
const char* TARGET = "-D__CUDA_ARCH__=800 -D__CUDACC_VER_MAJOR__=13 -D__CUDACC_VER_MINOR__=0";

bool is_word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

size_t skip_space(const std::string& text, size_t at) {
    while (at < text.size() && isspace(static_cast<unsigned char>(text[at]))) at++;
    return at;
}

size_t skip_word(const std::string& text, size_t at) {
    while (at < text.size() && is_word(text[at])) at++;
    return at;
}

// The next place of a word that stands alone.
size_t find_word(const std::string& text, const std::string& word, size_t from) {
    for (size_t at = text.find(word, from); at != std::string::npos; at = text.find(word, at + 1)) {
        bool starts = at == 0 || !is_word(text[at - 1]);
        if (starts && !is_word(text[at + word.size()])) return at;
    }
    return std::string::npos;
}

// Behind the bracket that closes the one at `at`.
size_t skip_brackets(const std::string& text, size_t at) {
    int depth = 0;
    bool quoted = false;
    for (; at < text.size(); at++) {
        char c = text[at];
        if (quoted && c == '\\') at++;
        if (c == '"') quoted = !quoted;
        if (quoted) continue;
        if (c == '(') depth++;
        if (c == ')' && --depth == 0) return at + 1;
    }
    return text.size();
}

// Splits at a character that stands outside of quotes and brackets.
std::vector<std::string> split(const std::string& text, char by) {
    std::vector<std::string> parts(1);
    int depth = 0;
    bool quoted = false;
    for (char c : text) {
        if (c == '"') quoted = !quoted;
        if (!quoted) depth += (c == '(' || c == '[') - (c == ')' || c == ']');
        if (c == by && !quoted && depth == 0)
            parts.emplace_back();
        else
            parts.back() += c;
    }
    return parts;
}

// asm("name.of.it {%0, %1}, [%2], 16;" : "=r"(a), "=r"(b) : "l"(c)) as ptx_name_of_it(a, b, c, 16).
std::string as_call(const std::string& statement) {
    std::vector<std::string> sections = split(statement, ':'), operands;
    for (size_t i = 1; i < sections.size(); i++)
        for (const std::string& operand : split(sections[i], ',')) {
            size_t open = operand.find('(');
            if (open != std::string::npos) operands.push_back(operand.substr(open));
        }
    std::string text = sections[0].substr(sections[0].find('"') + 1);
    text = text.substr(0, text.find(';'));
    size_t end = skip_space(text, 0);
    while (end < text.size() && !isspace(static_cast<unsigned char>(text[end]))) end++;
    std::string call = "ptx_" + text.substr(0, end) + "(", separator;
    for (char& c : call)
        if (c == '.') c = '_';
    std::stringstream rest(text.substr(end));
    for (std::string item; std::getline(rest, item, ',');) {
        std::string value;
        for (char c : item)
            if (is_word(c) || c == '%') value += c;
        if (value.empty()) continue;
        call += separator + (value[0] == '%' ? operands.at(std::stoul(value.substr(1))) : value);
        separator = ", ";
    }
    return call + ")";
}

void rewrite_instructions(std::string& text) {
    for (size_t at = 0; (at = find_word(text, "asm", at)) != std::string::npos;) {
        size_t open = skip_space(text, at + 3);
        if (text.compare(open, 8, "volatile") == 0) open = skip_space(text, open + 8);
        size_t end = skip_brackets(text, open);
        std::string call = as_call(text.substr(open + 1, end - open - 2));
        text.replace(at, end - at, call);
        at += call.size();
    }
}

// extern __shared__ TYPE name[]; as a pointer to what the launch asked for.
void rewrite_shared(std::string& text) {
    const std::string start = "extern __shared__";
    for (size_t at = 0; (at = text.find(start, at)) != std::string::npos;) {
        size_t from = at + start.size(), end = text.find("[]", from);
        size_t align = text.find("__align__", from);
        if (align < end) from = skip_brackets(text, align);
        size_t name = end;
        while (is_word(text[name - 1])) name--;
        std::string type = text.substr(from, name - from);
        std::string pointer = type + "* " + text.substr(name, end - name) + " = (" + type + "*)emulated_thread->block->shared";
        text.replace(at, end + 2 - at, pointer);
    }
}

// A line for each kernel of a text, which lets the library find it.
std::string kernels_of(const std::string& text) {
    std::string lines = "\n";
    for (size_t at = 0; (at = find_word(text, "__global__", at)) != std::string::npos;) {
        std::string threads = "1024";
        at = skip_space(text, at + 10);
        for (size_t end; (end = skip_word(text, at)) > at;) {
            std::string word = text.substr(at, end - at);
            at = skip_space(text, end);
            if (word == "__launch_bounds__") {
                end = skip_brackets(text, at);
                threads = split(text.substr(at + 1, end - at - 2), ',')[0];
                at = skip_space(text, end);
            } else if (text[at] == '(') {
                lines += "EMULATED_KERNEL(" + word + ", " + threads + ")\n";
                break;
            }
        }
    }
    return lines;
}

std::string hash_of(const std::string& text) {
    unsigned long long hash = 0xcbf29ce484222325;
    for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
    char digits[17];
    snprintf(digits, sizeof digits, "%016llx", hash);
    return digits;
}

bool execute(const std::string& command, const std::string& log) {
    return std::system((command + " 2> " + log).c_str()) == 0;
}

}  // namespace

std::string contents(const std::string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

std::string folder() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(compile), &info)) die("it does not know where it lies");
    std::string path = info.dli_fname;
    return path.find('/') == std::string::npos ? "." : path.substr(0, path.rfind('/'));
}

// EMULATED_GPU_BREAK="text=>other" puts a fault into every kernel that has the text.
std::string broken(std::string source) {
    const char* given = getenv("EMULATED_GPU_BREAK");
    const std::string fault = given ? given : "";
    size_t arrow = fault.find("=>");
    if (arrow == std::string::npos) return source;
    const std::string text = fault.substr(0, arrow), other = fault.substr(arrow + 2);
    for (size_t at = 0; (at = source.find(text, at)) != std::string::npos; at += other.size()) source.replace(at, text.size(), other);
    return source;
}

Compiled compile(const std::string& source, const std::string& options) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    std::string home = folder(), work = home + "/cache/" + std::to_string(getpid());
    std::string log = work + ".log", given = work + ".cu", plain = work + ".ii", code = work + ".cpp";
    std::ofstream(given) << broken(source);
    // Without the system's headers: kernel.h has what is needed of them, and it comes later.
    std::string preprocess = std::string("g++ -E -std=c++17 -nostdinc ") + TARGET + " " + options + " -I " + home +
                             "/empty -x c++ - < " + given + " -o " + plain;
    if (!execute(preprocess, log)) return {"", contents(log)};
    std::string text = contents(plain), kernels = kernels_of(text);
    for (const std::string& file : {log, given, plain}) unlink(file.c_str());
    rewrite_shared(text);
    rewrite_instructions(text);
    text = "#include \"kernel.h\"\n" + text + kernels;
    std::string header = contents(home + "/include/kernel.h") + contents(home + "/include/threads.h");
    std::string path = home + "/cache/" + hash_of(header + FLAGS + text) + ".so";
    if (access(path.c_str(), R_OK) == 0) return {path, ""};
    std::ofstream(code) << text;
    std::string build = std::string("g++ ") + FLAGS + " -I " + home + "/include " + code + " -o " + work + ".so -L " + home +
                        " -l:libemulated-gpu.so";
    if (!execute(build, log)) return {"", contents(log)};
    rename((work + ".so").c_str(), path.c_str());
    for (const std::string& file : {log, code}) unlink(file.c_str());
    return {path, ""};
}
