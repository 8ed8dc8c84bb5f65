// Runs several networks side by side, each in a thread of its own, in C++.
//
//     ./together BUNDLE...
//
// Prints each network's first input and how long a run took.
#include <bitkiln.h>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using Model = std::unique_ptr<bk_model, decltype(&bk_destroy)>;

// Runs the network ten times; gives the line to print.
static std::string run(bk_model *model, const std::string &name)
{
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 10; i++)
        if (bk_run(model) != 0) return name + ": " + bk_last_error(model);
    std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    bk_tensor_info input;
    bk_input_info(model, 0, &input);
    std::string line = name + ": " + input.name;
    for (int i = 0; i < input.ndim; i++) line += " " + std::to_string(input.shape[i]);
    return line + ", " + std::to_string(took.count() / 10) + " ms";
}

int main(int argc, char **argv)
{
    std::vector<Model> models;
    for (int i = 1; i < argc; i++) {
        models.emplace_back(bk_open(argv[i], 1), bk_destroy);
        if (!models.back()) return std::fprintf(stderr, "together: %s\n", bk_last_error(nullptr)), 2;
    }
    std::vector<std::string> lines(models.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < models.size(); i++)
        threads.emplace_back([&, i] { lines[i] = run(models[i].get(), argv[i + 1]); });
    for (auto &thread : threads) thread.join();
    for (const auto &line : lines) std::puts(line.c_str());
}
